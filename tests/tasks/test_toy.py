"""A task from outside of the package trains, resumes, is evaluated and reported like our own."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import chex
import numpy as np
import pytest

import vig_jax
from kernels_pallas.testing import rms_relative_error
from tests import several
from tests.tasks import toy
from vig_jax.cli.main import main
from vig_jax.config import parse
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.tasks.registry import TaskEntry, get_task, register_task
from vig_jax.train.launch import STOPPED_STATUS
from vig_jax.train.loop import run
from vig_jax.train.supervise import LOST_STATUS

ROOT = Path(__file__).parents[2]
PAGE = f"--config={ROOT / 'tests' / 'tasks' / 'toy_page.py'}"


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
    assert len(losses) == 12
    assert losses[-1] < losses[0]
    assert all("train/pixel_accuracy" in r for r in records if "train/loss" in r)
    assert records[-1]["eval/average_precision"] > 0.5  # a seventh of the pixels are in squares
    assert not (whole / "first_batch.png").exists()  # the task has no preview
    ema, raw = (
        load_for_inference(whole / "checkpoints" / "12", ema=e).variables for e in (True, False)
    )
    assert ema.keys() == raw.keys() == {"params", "batch_stats"}
    mean = [x["batch_stats"]["BatchNorm_0"]["mean"] for x in (ema, raw)]
    assert (np.asarray(mean[0]) != np.asarray(mean[1])).all()


def test_becomes_a_hub_folder(whole, tmp_path, capsys):
    """Under our names, as no other project has names for its layers."""
    loaded = load_for_inference(whole)
    with pytest.raises(ConfigError, match=r"'squares' is not built in, and config.plugins does"):
        vig_jax.save_pretrained(tmp_path / "hub", loaded)
    config = dataclasses.replace(loaded.config, plugins=("tests.tasks.toy",))
    loaded = dataclasses.replace(loaded, config=config)
    vig_jax.save_pretrained(tmp_path / "hub", loaded)
    again = vig_jax.from_pretrained(tmp_path / "hub")
    chex.assert_trees_all_equal(again.variables, loaded.variables)
    assert (again.config.task, again.metrics) == (config.task, loaded.metrics)
    assert main(["evaluate", str(tmp_path / "hub"), "--json", str(tmp_path / "hub.json")]) == 0
    found = json.loads((tmp_path / "hub.json").read_text())
    assert found["average_precision"] == loaded.metrics["average_precision"]
    assert main(["convert", str(tmp_path / "hub"), str(tmp_path / "copy"), "--to", "hub"]) == 0
    chex.assert_trees_all_equal(
        vig_jax.from_pretrained(tmp_path / "copy").variables, loaded.variables
    )
    with pytest.raises(WeightsError, match="unexpected"):
        vig_jax.load_weights(tmp_path / "hub")
    wider = {"task": {"name": "squares", "width": 7}}
    facts = json.loads((tmp_path / "hub" / "config.json").read_text())
    facts["config"] |= wider
    (tmp_path / "hub" / "config.json").write_text(json.dumps(facts))
    with pytest.raises(WeightsError, match=r"differ: .* shapes differ: batch_stats/"):
        vig_jax.from_pretrained(tmp_path / "hub")


def train_py(workdir, *options, **environment):
    return subprocess.Popen(
        [sys.executable, "train.py", PAGE, f"--workdir={workdir}", *options],
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def check_equal(workdir, whole):
    for ema in (False, True):
        ours, theirs = (
            load_for_inference(d / "checkpoints" / "12", ema=ema).variables
            for d in (workdir, whole)
        )
        chex.assert_trees_all_equal(ours, theirs)
    assert lines(workdir) == lines(whole)


def test_killed_run_resumes_to_the_bit(whole, tmp_path, capsys):
    killed = train_py(tmp_path, SQUARES_KILL_AT="85")  # in the 11th batch, read ahead
    printed, _ = killed.communicate()
    assert killed.returncode == -signal.SIGKILL, printed
    run(parse(toy.page()), tmp_path)
    printed = capsys.readouterr().err
    assert re.search(r"resuming from the checkpoint of step [2-8] of 12", printed)
    assert "24 images to train on, 10 to evaluate, one kind of square" in printed
    check_equal(tmp_path, whole)


@pytest.mark.multidevice
def test_two_processes_of_which_one_dies_are_continued_by_one(whole, tmp_path, capsys):
    dies = {"SQUARES_KILL_AT": "45"}  # in the last batch, which is read ahead
    first, second = several.ended(
        several.start(
            *(2, "train.py", PAGE, f"--workdir={tmp_path}"),
            *("--config.data.prefetch=1", "--config.train.lost_after_seconds=5"),
            environments=({}, dies),
            cluster=several.slurm,
        )
    )
    assert second[0] == 128 + signal.SIGKILL, second
    assert second[1][-1] == "error: the process was ended by SIGKILL"
    assert first[0] == LOST_STATUS, first
    assert first[1][-1].startswith("error: another process of the run is gone")
    assert "Traceback" not in " ".join(first[1])
    # Both processes have evaluated their images.
    evaluated, expected = (
        next(line for line in lines(folder) if "eval/average_precision" in line)
        for folder in (tmp_path, whole)
    )
    # The bias before the normalisation has no gradient but rounding, which Adam amplifies. It shows
    # only with the running mean.
    assert evaluated == pytest.approx(expected, rel=0.05)
    with np.load(tmp_path / toy.RESULTS) as ours, np.load(whole / toy.RESULTS) as theirs:
        np.testing.assert_array_equal(ours["index"], np.arange(10))
        np.testing.assert_array_equal(ours["mask"], theirs["mask"])

    run(parse(toy.page()), tmp_path)
    assert "resuming from the checkpoint of step" in capsys.readouterr().err
    with np.load(tmp_path / toy.RESULTS) as ours, np.load(whole / toy.RESULTS) as theirs:
        assert rms_relative_error(ours["logits"], theirs["logits"]) < 0.05
    for ours, theirs in zip(lines(tmp_path), lines(whole), strict=True):
        assert ours["step"] == theirs["step"]
        if "train/loss" in ours:
            assert ours["train/loss"] == pytest.approx(theirs["train/loss"], rel=1e-3)


@pytest.mark.slow  # test_run.py stops one process, and the test above ends one of two
@pytest.mark.multidevice
def test_a_signal_to_one_of_two_processes_stops_both(tmp_path):
    signalled = {"SQUARES_KILL_AT": "1", "SQUARES_SIGNAL": "SIGTERM"}
    (status, printed), (other, _) = several.ended(
        several.start(2, "train.py", PAGE, f"--workdir={tmp_path}", environments=({}, signalled))
    )
    assert status == other == STOPPED_STATUS, printed
    stopped = re.fullmatch(r"stopped by a signal after step (\d+) of 12, saved; .*", printed[-1])
    assert load_for_inference(tmp_path / "checkpoints").step == int(stopped[1]) < 12


def test_commands(whole, tmp_path, capsys):
    numbers = tmp_path / "metrics.json"
    command = ["evaluate", str(whole), "--json", str(numbers), "--results", str(tmp_path / "more")]
    assert main(command) == 0
    logged = max(r.get("eval/ema_average_precision", 0) for r in lines(whole))
    assert json.loads(numbers.read_text())["average_precision"] == pytest.approx(logged)
    assert (tmp_path / "more" / "logits.png").exists()
    assert main(["evaluate", str(whole), "--image-size", "16"]) == 1
    assert "the settings of the task 'squares' decide the size" in capsys.readouterr().err
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
    for name in ("classification", "squares"):
        with pytest.raises(ConfigError, match=f"{name!r} is the name of a task already"):
            register_task(name, TaskEntry(toy.make, toy.REPORT))


def test_predictions_for_files_need_a_predictor(whole, tmp_path, capsys):
    photo = tmp_path / "a.png"
    photo.touch()
    assert main(["predict", str(whole), str(photo)]) == 1
    assert "the task 'squares' has no predictions for files" in capsys.readouterr().err
