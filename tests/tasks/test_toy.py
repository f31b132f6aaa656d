"""A task from outside of the package trains, resumes, is evaluated and reported like our own."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest

from tests.tasks import toy
from tests.train.test_run import at_step
from vig_jax.cli.main import main
from vig_jax.config import parse
from vig_jax.errors import ConfigError
from vig_jax.tasks.registry import TaskEntry, get_task, register_task
from vig_jax.train.checkpoint import load_for_inference
from vig_jax.train.loop import run

ROOT = Path(__file__).parents[2]


def lines(workdir):
    timed = ("train/img_per_s", "train/data_wait")
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run(parse(toy.page()), workdir)
    return workdir


def test_trains(whole):
    records = lines(whole)
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    assert all("train/pixel_accuracy" in r for r in records if "train/loss" in r)
    assert records[-1]["eval/average_precision"] > 0.5  # a seventh of the pixels are in squares
    assert not (whole / "first_batch.png").exists()  # the task has no preview
    ema, raw = (
        load_for_inference(whole / "checkpoints" / "6", ema=e).variables for e in (True, False)
    )
    assert ema.keys() == raw.keys() == {"params", "batch_stats"}
    mean = [x["batch_stats"]["BatchNorm_0"]["mean"] for x in (ema, raw)]
    assert (np.asarray(mean[0]) != np.asarray(mean[1])).all()


def test_train_py_resumes_to_the_bit(whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        at_step(patch, 4, lambda: signal.raise_signal(signal.SIGTERM))
        run(parse(toy.page()), tmp_path)
    page = ROOT / "tests" / "tasks" / "toy_page.py"
    command = [sys.executable, "train.py", f"--config={page}", f"--workdir={tmp_path}"]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "resuming from the checkpoint of step 4 of 6" in done.stderr
    assert "24 images to train on, 10 to evaluate, one kind of square" in done.stderr
    for ema in (False, True):
        ours, theirs = (
            load_for_inference(d / "checkpoints" / "6", ema=ema).variables
            for d in (tmp_path, whole)
        )
        chex.assert_trees_all_equal(ours, theirs)
    assert lines(tmp_path) == lines(whole)


def test_commands(whole, tmp_path, capsys):
    numbers = tmp_path / "metrics.json"
    command = ["evaluate", str(whole), "--json", str(numbers), "--results", str(tmp_path / "more")]
    assert main(command) == 0
    logged = max(r.get("eval/ema_average_precision", 0) for r in lines(whole))
    assert json.loads(numbers.read_text())["average_precision"] == pytest.approx(logged)
    assert (tmp_path / "more" / "logits.png").exists()
    assert main(["report", str(whole)]) == 0
    printed = capsys.readouterr().out
    assert "by ema_average_precision" in printed
    assert f"wrote {whole / 'logits.png'}" in printed


def test_settings_of_a_task_are_checked():
    values = toy.page().to_dict()
    values["task"] = {"name": "squares", "widht": 3}
    with pytest.raises(ConfigError, match=r"config\.task\.widht is not a setting.*task\.width"):
        parse(values)
    with pytest.raises(ConfigError, match="'square' is not a task; did you mean 'squares'"):
        get_task("square")
    with pytest.raises(ValueError, match="'classification' is a built-in task"):
        register_task("classification", TaskEntry(toy.make, toy.REPORT))
