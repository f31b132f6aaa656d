"""Worker processes: their batches, how they start, and that they end."""

import dataclasses
import itertools
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from tests.data.loading import eval_batches, train_batches
from vig_jax import data as package
from vig_jax.data import open_dataset
from vig_jax.data.loader import batches as loader
from vig_jax.data.loader import pipeline, watch
from vig_jax.data.loader.shared_memory import SHARED_MEMORY, remove_stale
from vig_jax.errors import DataWorkerError


def test_two_workers(make_data, folder, monkeypatch, caplog):
    """They start together, make the batches that threads make, and a killed one is an error."""
    caplog.set_level("INFO")
    monkeypatch.setattr("vig_jax.data.loader.iterator.cpu_count", lambda: 2)
    data = make_data(source="image_folder", path=str(folder), image_size=16, resize="pillow")
    dataset = open_dataset(data, "train")
    settings = {"batch_size": 8, "seed": 0, "start_step": 2}
    with train_batches(dataset, data, **settings) as batches:
        expected = list(itertools.islice(batches, 4))  # across the end of an epoch
    with train_batches(dataset, data, workers=64, **settings) as batches:
        assert "workers=64: using 2" in caplog.text
        deadline = time.monotonic() + 20
        while len(multiprocessing.active_children()) < 2:  # before a batch is requested
            assert time.monotonic() < deadline
            time.sleep(0.02)
        for batch, other in zip(batches, expected, strict=False):
            assert batch.keys() == other.keys()
            for name in batch:
                np.testing.assert_array_equal(batch[name], other[name], name)
            if other is expected[-1]:
                break
        worker = multiprocessing.active_children()[0].pid
        for harmless in (signal.SIGINT, signal.SIGTERM):  # meant for the main process
            os.kill(worker, harmless)
        next(batches)
        time.sleep(1)  # until it waits with full buffers: killed at work, it leaves a file behind
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="terminated unexpectedly"):
            list(itertools.islice(batches, 20))
    assert not multiprocessing.active_children()


@dataclasses.dataclass(frozen=True)
class Slow:
    """A preprocess that stops at one example; it must be picklable by name."""

    label: int = 2

    @property
    def spec(self):
        return {"label": ((), np.dtype(np.int32))}

    def __call__(self, example, rng):
        if example["label"] == self.label:
            time.sleep(60)
        return {"label": np.array(example["label"], np.int32)}


def test_a_worker_that_takes_too_long_or_is_killed_names_the_image(make_data, folder):
    dataset = open_dataset(make_data(source="image_folder", path=str(folder)), "train")
    first = 21  # of the last class
    limited = loader.eval_batches(dataset, Slow(), batch_size=8, workers=1, image_seconds=0.5)
    late = f"{dataset.name_of(first)} in hand for longer"
    with limited as batches, pytest.raises(DataWorkerError, match=late):
        list(batches)
    with loader.eval_batches(dataset, Slow(), batch_size=8, workers=1) as batches:
        next(batches)
        deadline = time.monotonic() + 20
        while not batches._watch._notes():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
        with pytest.raises(DataWorkerError, match=rf"code -9.*it had {dataset.name_of(first)} in"):
            list(batches)
    assert not multiprocessing.active_children()


class Arrays(dict):
    """The arrays of an example, which take a minute to read in a worker after some batches."""

    asked = itertools.count()

    def __getitem__(self, name):
        if multiprocessing.parent_process() and next(self.asked) > 5:
            time.sleep(60)
        return super().__getitem__(name)


class HangsBetweenImages(Slow):
    """A preprocess whose arrays cannot be read."""

    def __call__(self, example, rng):
        return Arrays(super().__call__(example, rng))


def hangs_at_its_start(*_):
    time.sleep(60)


def test_workers_that_hang_outside_of_images_are_an_error(make_data, folder, monkeypatch):
    dataset = open_dataset(make_data(source="image_folder", path=str(folder)), "train")
    settings = {"batch_size": 1, "seed": 0, "workers": 1, "image_seconds": 0.5}
    between = r"nothing came.*0\.5 s \(1 between images\).*config\.data\.image_seconds"
    with loader.train_batches(dataset, HangsBetweenImages(label=-1), **settings) as batches:
        next(batches)
        time.sleep(1.5)  # nothing is awaited: a worker with full buffers may be silent
        with pytest.raises(DataWorkerError, match=between):
            list(batches)
    monkeypatch.setattr(pipeline, "_start_worker", hangs_at_its_start)
    monkeypatch.setattr(watch, "_START_SECONDS", 1.0)
    starting = r"nothing came.* for 1 s \(1 starting\)"
    stuck = loader.train_batches(dataset, Slow(label=-1), **settings)
    with stuck as batches, pytest.raises(DataWorkerError, match=starting):
        next(batches)
    assert not multiprocessing.active_children()


def test_threads_report_that_they_are_silent(caplog):
    seen = watch.Watch(lambda index, group: "", 0.2, owner=1)
    with seen.awaiting():
        deadline = time.monotonic() + 5
        while "a batch is awaited, but no thread has had an image in hand" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    seen.close()


def test_threads_report_an_image_that_takes_too_long(make_data, folder, caplog):
    dataset = open_dataset(make_data(source="image_folder", path=str(folder)), "train")
    name = dataset.name_of(5)
    seen = watch.Watch(lambda index, group: dataset.name_of(index), 0.2, owner=id(dataset))
    watch.begin(5, owner=id(dataset))
    deadline = time.monotonic() + 5
    while f"{name} has been in hand for more than the 0.2 s of" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    watch.end()
    assert not seen._notes()
    seen.close()


def test_data_imports_no_jax():
    """The start of every worker, and its memory, depend on it."""
    for file in Path(package.__file__).parent.rglob("*.py"):
        imported = re.search(r"^\s*(import|from) (jax|flax)\b", file.read_text(), re.MULTILINE)
        assert not imported, file


SCRIPT = """
    import os, signal, sys
    from vig_jax.config import DataConfig
    from vig_jax.data import eval_batches, open_dataset, train_batches
    from vig_jax.data.preprocess.classification import ClassificationPreprocess

    if __name__ == "__main__":
        data = DataConfig(**{settings!r})
        preprocess = ClassificationPreprocess(data, train=True)
        if "die" not in sys.argv:
            dataset = open_dataset(data, "eval")
            with eval_batches(dataset, preprocess, batch_size=500, workers=1) as batches:
                sums = [batch["image"].sum().item() for batch in batches]
            print(sums)
        dataset = open_dataset(data, "train")
        batches = train_batches(dataset, preprocess, batch_size=32, seed=0, workers=1)
        batch = next(batches)  # both are left to the end of the program
        print(len(batch["label"]), flush=True)
        if "die" in sys.argv:
            (os.killpg if "group" in sys.argv else os.kill)(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def data(make_data):
    return make_data(image_size=16, resize="pillow")


@pytest.fixture
def script(tmp_path, data):
    path = tmp_path / "script.py"
    path.write_text(textwrap.dedent(SCRIPT).format(settings=dataclasses.asdict(data)))
    return [sys.executable, str(path)]


def test_a_program_ends_quietly_whether_it_closes_an_iterator_or_not(script, data):
    ended = subprocess.run(script, capture_output=True, text=True, timeout=60)
    with eval_batches(open_dataset(data, "eval"), data, batch_size=500) as batches:
        sums = [batch["image"].sum().item() for batch in batches]
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"{sums}\n32\n", "")


def test_workers_die_with_their_parent(script):
    before = set(SHARED_MEMORY.iterdir())
    # The pipe stays open as long as any of them lives.
    ended = subprocess.run([*script, "die"], stdout=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"32\n")
    new = set(SHARED_MEMORY.iterdir()) - before
    for _ in range(100):  # other tests may have memory there for a moment
        if not any(file.exists() for file in new):
            break
        time.sleep(0.1)
    assert not [file for file in new if file.exists()]


def test_what_a_killed_group_leaves_in_shared_memory_is_removed(script):
    """Nobody is left to tidy up, not even Python's resource tracker."""
    before = set(SHARED_MEMORY.iterdir())
    ended = subprocess.run(
        [*script, "die", "group"], stdout=subprocess.PIPE, timeout=60, start_new_session=True
    )
    assert ended.returncode == -signal.SIGKILL
    left = set(SHARED_MEMORY.iterdir()) - before
    assert len(left) > 2
    assert {file.name.removeprefix("sem.")[:8] for file in left} == {"vig_jax_"}
    remove_stale()
    assert not [file for file in left if file.exists()]
    remove_stale()
