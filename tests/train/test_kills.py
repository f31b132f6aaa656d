"""A run that is killed twenty times, in every phase, ends with the unbroken run's parameters.

The task is that of `tests.tasks.toy`. Each kill is a SIGKILL of the whole process at a moment that
belongs to a phase: starting, updating, saving, deleting an old checkpoint, evaluating. Kills in a
phase that the process does not reach again count as kills of the phase in which they strike.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import chex
import pytest

from vig_jax.config import parse
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.train.loop import run

ROOT = Path(__file__).parents[2]
PAGE = """
from tests.tasks import toy

def get_config():
    config = toy.page().copy_and_resolve_references()
    config.train.update(epochs=40, eval_every_epochs=4, checkpoint_every_steps=3)
    config.train.update(keep_checkpoints=1)
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


def start(file, workdir):
    """Starts train.py with files that mark reads of training and evaluation images."""
    code = f"""
import pathlib, runpy, sys
from tests.tasks import toy
read = toy.Squares.__getitem__
def marked(self, index):
    phase = "updating" if self.split == "train" else "evaluating"
    pathlib.Path({str(workdir)!r}, "." + phase).touch()
    return read(self, index)
toy.Squares.__getitem__ = marked
sys.argv = ["train.py", "--config={file}", "--workdir={workdir}"]
runpy.run_path("train.py", run_name="__main__")
"""
    return subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_phase(tmp_path):
    file, workdir, whole = page(tmp_path), tmp_path / "run", tmp_path / "whole"
    workdir.mkdir()
    namespace: dict = {}
    exec(PAGE, namespace)
    run(parse(namespace["get_config"]()), whole)

    draw = random.Random(0)
    struck: collections.Counter[str] = collections.Counter()
    errors = ""
    for number in range(KILLS):
        phase, wait = PHASES[number % len(PHASES)], draw.random()
        for name in ("updating", "evaluating"):
            (workdir / f".{name}").unlink(missing_ok=True)
        process, begun = start(file, workdir), time.monotonic()
        while process.poll() is None and not reached(phase, workdir, begun, wait):
            time.sleep(0.001)
        if phase != "deleting":  # a deletion takes a millisecond
            time.sleep(0.05 * wait)
        process.kill()
        _, errors = process.communicate()
        assert process.returncode in (-signal.SIGKILL, 0), errors
        struck[phase if process.returncode else "finished"] += 1
    process = start(file, workdir)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert "Traceback" not in errors
    print("kills by phase:", dict(struck))
    assert struck.total() == KILLS
    assert struck["finished"] < KILLS / 2
    last = json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["step"] == 120
    for ema in (False, True):
        ours, theirs = (
            load_for_inference(d / "checkpoints" / "120", ema=ema).variables
            for d in (workdir, whole)
        )
        chex.assert_trees_all_equal(ours, theirs)
