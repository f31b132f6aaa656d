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

from tests.data.loading import eval_batches, eval_image, train_batches
from tests.data.pictures import encoded, photo
from vig_jax.data import open_dataset, steps_per_epoch
from vig_jax.data.loader import batches as loader
from vig_jax.data.loader.shared_memory import SHARED_MEMORY
from vig_jax.data.preprocess.decode import decode
from vig_jax.errors import DataSetError

BATCH = 8


@pytest.fixture
def data(make_data, folder):
    """32 training images, so 4 steps of 8; the settings crop, flip and resize."""
    return make_data(source="image_folder", path=str(folder), image_size=16)


def take(source, data, steps, start=0, batch_size=BATCH, seed=0, processes=1):
    """Global batches: the processes' rows put together."""
    parts = []
    for process in range(processes):
        with train_batches(
            source,
            data,
            batch_size=batch_size,
            seed=seed,
            start_step=start,
            process_index=process,
            process_count=processes,
        ) as batches:
            parts.append(list(itertools.islice(batches, steps)))
    return [
        {name: np.concatenate([part[k][name] for part in parts]) for name in parts[0][k]}
        for k in range(steps)
    ]


def assert_same(batches, others):
    assert len(batches) == len(others)
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], name)


def test_batch_has_its_types_and_belongs_to_its_indices(data):
    source = open_dataset(data, "train")
    plain = dataclasses.replace(data, crop="none", hflip=0.0)
    for batch in take(source, plain, 3):
        kinds = {name: (array.dtype, array.shape) for name, array in batch.items()}
        assert kinds == {
            "image": (np.uint8, (8, 16, 16, 3)),
            "label": (np.int32, (8,)),
            "index": (np.int64, (8,)),
            "bad": (np.int64, (8,)),
        }
        assert (batch["bad"] == -1).all()
        for image, label, index in zip(
            batch["image"], batch["label"], batch["index"].tolist(), strict=True
        ):
            example = source[index]
            assert label == example["label"]
            resized = decode(example["image"]).resize((16, 16), 3)
            np.testing.assert_array_equal(image, np.asarray(resized))


@pytest.mark.parametrize("batch_size", [8, 5])
def test_an_epoch_repeats_nothing_and_the_next_differs(data, batch_size):
    source = open_dataset(data, "train")
    steps = steps_per_epoch(source, batch_size)
    assert steps == 32 // batch_size
    batches = take(source, data, 3 * steps, batch_size=batch_size)
    epochs = [
        np.concatenate([b["index"] for b in batches[e * steps : (e + 1) * steps]]) for e in range(3)
    ]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == steps * batch_size
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_augmentation_differs_between_epochs_and_seeds(data):
    source = open_dataset(data, "train")
    drawn = {}
    for seed in (0, 1):
        for step, batch in enumerate(take(source, data, 8, seed=seed)):
            for image, index in zip(batch["image"], batch["index"].tolist(), strict=True):
                drawn[seed, step // 4, index] = image.tobytes()
    assert len(drawn) == 4 * 32
    assert len(set(drawn.values())) == 4 * 32


def test_consecutive_seeds_share_no_order(data):
    source = open_dataset(data, "train")
    orders = {
        seed: np.concatenate([b["index"] for b in take(source, data, 12, seed=seed)]).reshape(3, 32)
        for seed in (0, 1)
    }
    together = np.concatenate(list(orders.values()))
    assert len({order.tobytes() for order in together}) == 6


def test_the_order_is_pinned(data):
    # Whoever changes this breaks the resumption of runs in progress.
    batch = take(open_dataset(data, "train"), data, 1, start=5)[0]
    assert batch["index"].tolist() == [29, 17, 30, 21, 13, 18, 28, 22]


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_out_the_same_global_batches(data, processes):
    source = open_dataset(data, "train")
    assert_same(take(source, data, 6, processes=processes), take(source, data, 6))


@pytest.mark.parametrize("start", [1, 4, 11])
def test_resuming_is_starting_at_a_step(data, start):
    source = open_dataset(data, "train")
    assert_same(take(source, data, 3, start=start), take(source, data, start + 3)[start:])


def test_a_distant_step_is_reached_at_once(data):
    source = open_dataset(data, "train")
    assert_same(take(source, data, 1, start=10**9), take(source, data, 1, start=10**9))


def test_workers_change_nothing(data, monkeypatch):
    monkeypatch.setattr("vig_jax.data.loader.batches.cpu_count", lambda: 2)
    source = open_dataset(data, "train")
    here = take(source, data, 6, start=1)  # across the end of an epoch
    for workers, processes in ((1, 2), (2, 1)):
        elsewhere = dataclasses.replace(data, workers=workers)
        assert_same(take(source, elsewhere, 6, start=1, processes=processes), here)
    assert not multiprocessing.active_children()


def evaluate(data, batch_size, processes=1):
    source = open_dataset(data, "eval")
    parts = []
    for process in range(processes):
        with eval_batches(
            source,
            data,
            batch_size=batch_size,
            process_index=process,
            process_count=processes,
        ) as batches:
            parts.append(list(batches))
    assert len({len(part) for part in parts}) == 1
    return [
        {name: np.concatenate([part[name] for part in step]) for name in step[0]}
        for step in zip(*parts, strict=True)
    ]


def test_evaluation_is_one_pass_in_order(data):
    batches = evaluate(data, 4)
    source = open_dataset(data, "eval")
    assert [b["weight"].tolist() for b in batches] == [[1, 1, 1, 1], [1, 1, 1, 0]]
    assert [b["index"].tolist() for b in batches] == [[0, 1, 2, 3], [4, 5, 6, -1]]
    assert batches[0]["weight"].dtype == np.float32
    for batch in batches:
        assert (batch["bad"] == -1).all()
        assert batch["image"].shape == (4, 16, 16, 3)
        for row in np.flatnonzero(batch["weight"]):
            example = source[int(batch["index"][row])]
            assert batch["label"][row] == example["label"]
            expected = eval_image(decode(example["image"]), data)
            np.testing.assert_array_equal(batch["image"][row], expected)


@pytest.mark.parametrize(
    ("batch_size", "processes"),
    [(4, 2), pytest.param(4, 4, marks=pytest.mark.slow), (16, 4), (7, 1)],
)
def test_evaluation_is_shared_out_evenly(data, batch_size, processes):
    assert_same(evaluate(data, batch_size, processes), evaluate(data, batch_size))


def test_evaluation_with_workers(data):
    assert_same(evaluate(dataclasses.replace(data, workers=2), 4), evaluate(data, 4))


@pytest.fixture
def spoilt(data, folder):
    """Files 3, 4 and the last (31) of the training split are no images, nor is 2 of the other."""
    source = open_dataset(data, "train")
    for index, contents in ((3, b""), (4, b"no image"), (31, encoded(photo(9, 9))[:200])):
        (folder / source.name_of(index)).write_bytes(contents)
    (folder / open_dataset(data, "eval").name_of(2)).write_bytes(b"")
    return data


def test_training_replaces_a_bad_image_by_the_next_good_one(spoilt):
    source = open_dataset(spoilt, "train")
    batches = take(source, spoilt, 4)
    rows = {
        name: np.concatenate([batch[name] for batch in batches])
        for name in ("index", "bad", "label")
    }
    replaced = {
        bad: index
        for bad, index in zip(rows["bad"].tolist(), rows["index"].tolist(), strict=True)
        if bad >= 0
    }
    assert replaced == {3: 5, 4: 5, 31: 0}
    assert (rows["index"] == 5).sum() == 3
    for index, label in zip(rows["index"].tolist(), rows["label"].tolist(), strict=True):
        assert label == source[index]["label"]
    assert_same(take(source, spoilt, 4, processes=2), batches)


def test_a_vanished_file_is_a_bad_image(data, folder):
    source = open_dataset(data, "train")
    (folder / source.name_of(7)).unlink()
    bad = np.concatenate([batch["bad"] for batch in take(source, data, 4)])
    assert bad[bad >= 0].tolist() == [7]


def test_evaluation_gives_bad_images_no_weight(spoilt):
    first, second = evaluate(spoilt, 4)
    assert first["weight"].tolist() == [1, 1, 0, 1]
    assert first["bad"].tolist() == [-1, -1, 2, -1]
    assert second["bad"].tolist() == [-1] * 4


def test_a_folder_of_nothing_but_bad_images_is_an_error(data, folder):
    for file in (folder / "train").rglob("*.*"):
        file.write_bytes(b"")
    source = open_dataset(data, "train")
    with pytest.raises(DataSetError, match="32 images in a row cannot be decoded, from train/"):
        take(source, data, 1)


def test_too_few_images_for_a_batch(data):
    source = open_dataset(data, "train")
    with pytest.raises(DataSetError, match=r"32 images.*batch of 33.*at most 32"):
        train_batches(source, data, batch_size=33, seed=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_size": 0}, "config.data.image_size=0 must be at least 1"),
        ({"crop_scale": (0.5, 0.1)}, "config.data.crop_scale"),
        ({"crop_ratio": (0.0, 1.0)}, "config.data.crop_ratio"),
        ({"crop_pct": 1.2}, "config.data.crop_pct=1.2"),
        ({"crop_padding": -1}, "config.data.crop_padding"),
        ({"hflip": 1.5}, "config.data.hflip=1.5 must be a probability"),
        ({"workers": -1}, "config.data.workers=-1"),
        ({"prefetch": -1}, "config.data.prefetch=-1"),
    ],
)
def test_settings_out_of_range(data, change, message):
    source = open_dataset(data, "train")
    with pytest.raises(ValueError, match=message):
        train_batches(source, dataclasses.replace(data, **change), batch_size=8, seed=0)


def test_processes_must_divide_the_batch(data):
    source = open_dataset(data, "train")
    with pytest.raises(ValueError, match="batch_size=8 must be a multiple of the 3 processes"):
        train_batches(source, data, batch_size=8, seed=0, process_count=3)
    with pytest.raises(ValueError, match="process 2 of 2"):
        eval_batches(source, data, batch_size=8, process_index=2, process_count=2)
    with pytest.raises(ValueError, match="must not be negative"):
        train_batches(source, data, batch_size=8, seed=-1)


def test_little_shared_memory_is_said_beforehand(make_data, monkeypatch):
    monkeypatch.setattr("vig_jax.data.loader.batches.cpu_count", lambda: 4)
    monkeypatch.setattr("vig_jax.data.loader.shared_memory.free_bytes", lambda: 64 * 2**20)
    data = make_data(source="synthetic", image_size=224, workers=4)
    source = open_dataset(data, "train")
    with pytest.raises(DataSetError, match=r"but 64 MiB are free.*--shm-size.*workers=0"):
        train_batches(source, data, batch_size=512, seed=0)
    # 17 batches of 20 images are 51 MB: enough alone, but not for evaluation beside training.
    with pytest.raises(DataSetError, match="98 MiB"):
        train_batches(source, data, batch_size=20, seed=0)
    eval_batches(open_dataset(data, "eval"), data, batch_size=20).close()


def test_more_workers_than_cpus_are_not_started(data, monkeypatch, caplog):
    monkeypatch.setattr("vig_jax.data.loader.batches.cpu_count", lambda: 1)
    many = dataclasses.replace(data, workers=64)
    with (
        caplog.at_level("INFO"),
        train_batches(open_dataset(data, "train"), many, batch_size=8, seed=0) as batches,
    ):
        next(batches)
        assert len(multiprocessing.active_children()) == 1
    assert "workers=64: using 1" in caplog.text


def test_workers_start_together_and_before_the_first_batch_is_wanted(data, monkeypatch):
    monkeypatch.setattr("vig_jax.data.loader.batches.cpu_count", lambda: 2)
    two = dataclasses.replace(data, workers=2)
    with train_batches(open_dataset(data, "train"), two, batch_size=8, seed=0):
        for _ in range(200):
            if len(multiprocessing.active_children()) == 2:
                break
            time.sleep(0.05)
        assert len(multiprocessing.active_children()) == 2


def test_a_closed_iterator_says_so(data):
    batches = train_batches(open_dataset(data, "train"), data, batch_size=8, seed=0)
    next(batches)
    batches.close()
    batches.close()
    with pytest.raises(ValueError, match="closed"):
        next(batches)


def test_a_killed_worker_is_an_error_and_not_a_wait(data):
    with train_batches(
        open_dataset(data, "train"), dataclasses.replace(data, workers=1), batch_size=8, seed=0
    ) as batches:
        next(batches)
        worker = multiprocessing.active_children()[0].pid
        for harmless in (signal.SIGINT, signal.SIGTERM):  # meant for the main process
            os.kill(worker, harmless)
        assert len(list(itertools.islice(batches, 20))) == 20
        time.sleep(1)  # until it waits with full buffers: killed at work, it leaves a file behind
        os.kill(worker, signal.SIGKILL)
        with pytest.raises(RuntimeError, match="terminated unexpectedly"):
            list(itertools.islice(batches, 20))


def test_only_what_runs_on_the_device_imports_jax():
    package = Path(loader.__file__).parent
    importing = {
        file.name
        for file in package.glob("*.py")
        if re.search(r"^\s*(import|from) (jax|flax)\b", file.read_text(), re.MULTILINE)
    }
    assert importing == set()  # the workers' start and memory


SCRIPT = """
    import os, signal, sys
    from vig_jax.config import DataConfig
    from vig_jax.data import eval_batches, open_dataset, train_batches
    from vig_jax.data.preprocess.classification import ClassificationPreprocess

    if __name__ == "__main__":
        data = DataConfig(**{settings!r})
        preprocess = ClassificationPreprocess(data, train=True)
        if "pass" in sys.argv:
            dataset = open_dataset(data, "eval")
            with eval_batches(dataset, preprocess, batch_size=500, workers=1) as batches:
                print(sum(1 for _ in batches))
            sys.exit()
        dataset = open_dataset(data, "train")
        batches = train_batches(dataset, preprocess, batch_size=32, seed=0, workers=1)
        batch = next(batches)  # both are left to the end of the program
        print(len(batch["label"]), flush=True)
        if "die" in sys.argv:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def script(tmp_path, make_data):
    path = tmp_path / "script.py"
    settings = dataclasses.asdict(make_data(workers=1))
    path.write_text(textwrap.dedent(SCRIPT).format(settings=settings))
    return [sys.executable, str(path)]


def test_a_program_that_closes_nothing_ends_quietly(script):
    ended = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "32\n", "")


def test_a_program_that_evaluates_ends_quietly(script):
    ended = subprocess.run([*script, "pass"], capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "4\n", "")


def test_workers_die_with_their_parent(script):
    shared = SHARED_MEMORY
    before = set(shared.iterdir())
    # The pipe stays open as long as any of them lives.
    ended = subprocess.run([*script, "die"], stdout=subprocess.PIPE, timeout=60)
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, b"32\n")
    new = set(shared.iterdir()) - before
    for _ in range(100):  # other tests may have memory there for a moment
        if not any(file.exists() for file in new):
            break
        time.sleep(0.1)
    assert not [file for file in new if file.exists()]
