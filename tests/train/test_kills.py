"""A run that is killed twenty times, in every phase, ends with the unbroken run's parameters.

The task is that of `tests.tasks.toy`. Each kill is a SIGKILL of a process at a moment that
belongs to a phase: starting, updating, saving, deleting an old checkpoint, evaluating. Kills in a
phase that the process does not reach again count as kills of the phase in which they strike.
"""

import collections
import contextlib
import json
import os
import random
import signal
import time
from pathlib import Path

import chex
import pytest

import tests.tasks.toy  # noqa: F401 - registers the task
from tests import several
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.train.supervise import LOST_STATUS

ROOT = Path(__file__).parents[2]
PAGE = """
from tests.tasks import toy

def get_config():
    config = toy.page().copy_and_resolve_references()
    config.train.update(epochs=40, eval_every_epochs=4, checkpoint_every_steps=3)
    config.train.update(keep_checkpoints=1, lost_after_seconds=5)
    return config
"""
PHASES = ("starting", "updating", "saving", "deleting", "evaluating")
KILLS = 20


def page(folder):
    file = folder / "page.py"
    file.write_text(PAGE)
    return file


def reached(phase, workdir, begun, wait):
    """Returns whether a process is in a phase; `wait` spreads the kills within it."""
    checkpoints = workdir / "checkpoints"
    if phase == "starting":
        return time.monotonic() - begun > 4 * wait
    if phase == "updating":
        return (workdir / ".updating").exists()
    if phase == "saving":
        return any(checkpoints.glob("*.orbax-checkpoint-tmp*"))
    if phase == "deleting":
        return (checkpoints / ".deleted").exists()
    return (workdir / ".evaluating").exists()


def start(file, workdir, count):
    """Starts train.py with files that mark reads of training and evaluation images."""
    code = f"""
import pathlib, runpy, sys
from tests.tasks import toy
from vig_jax.train import processes
processes.START_SECONDS = 60  # for which one waits for another that was killed at its start
read = toy.Squares.__getitem__
def marked(self, index):
    phase = "updating" if self.split == "train" else "evaluating"
    pathlib.Path({str(workdir)!r}, "." + phase).touch()
    return read(self, index)
toy.Squares.__getitem__ = marked
sys.argv = ["train.py", "--config={file}", "--workdir={workdir}", *sys.argv[1:]]
runpy.run_path("train.py", run_name="__main__")
"""
    environments = [{"PYTHONPATH": str(ROOT)}] * count
    return several.start(count, "-c", code, environments=environments)


def kill(process, count):
    """Kills a process without its supervisor; returns the status that the command ends with."""
    if count == 1:
        process.kill()
        return -signal.SIGKILL
    tasks = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    for child in tasks.read_text().split() if tasks.exists() else ():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(child), signal.SIGKILL)
            return 128 + signal.SIGKILL
    process.kill()  # it has not started the other one
    return -signal.SIGKILL


def records(workdir):
    timed = ("train/img_per_s", "train/data_wait")
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.mark.slow
@pytest.mark.multidevice
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [1, 2])
def test_killed_in_every_phase(tmp_path, count):
    """In a run on two processes, one of them is killed, and the other one ends by itself."""
    file, workdir, whole = page(tmp_path), tmp_path / "run", tmp_path / "whole"
    for folder in (workdir, whole):
        folder.mkdir()
    finished = [0] * count
    assert [status for status, _ in several.ended(start(file, whole, count))] == finished

    draw = random.Random(0)
    struck: collections.Counter[str] = collections.Counter()
    for number in range(KILLS):
        phase, wait, victim = PHASES[number % len(PHASES)], draw.random(), draw.randrange(count)
        for name in ("updating", "evaluating"):
            (workdir / f".{name}").unlink(missing_ok=True)
        processes, begun = start(file, workdir, count), time.monotonic()
        killed = processes[victim]
        while killed.poll() is None and not reached(phase, workdir, begun, wait):
            time.sleep(0.001)
        if phase != "deleting":  # a deletion takes a millisecond
            time.sleep(0.05 * wait)
        expected = kill(killed, count) if killed.poll() is None else 0
        found = several.ended(processes, timeout=400)
        statuses = [status for status, _ in found]
        assert statuses[victim] in (expected, 0), found
        others = [status for number, status in enumerate(statuses) if number != victim]
        assert set(others) <= {LOST_STATUS, 0}, found
        struck[phase if statuses != finished else "finished"] += 1
    found = several.ended(start(file, workdir, count))
    assert [status for status, _ in found] == finished, found
    assert "Traceback" not in str(found)
    print("kills by phase:", dict(struck))
    assert struck.total() == KILLS
    assert struck["finished"] < KILLS / 2
    assert records(workdir) == records(whole)
    assert records(workdir)[-1]["step"] == 120
    for ema in (False, True):
        ours, theirs = (
            load_for_inference(d / "checkpoints" / "120", ema=ema).variables
            for d in (workdir, whole)
        )
        chex.assert_trees_all_equal(ours, theirs)
