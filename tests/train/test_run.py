"""Whole runs: to the end, interrupted in every way, and refused."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from kernels_pallas.testing import TOLERANCES
from vig_jax.cli.main import main
from vig_jax.config import to_dict
from vig_jax.errors import CheckpointError, DataWorkerError, NonFiniteLossError
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.metrics.confusion import Confusion
from vig_jax.train import loop
from vig_jax.train.experiment import Experiment
from vig_jax.train.logging.history import write_report
from vig_jax.train.logging.writers import RunLog
from vig_jax.train.loop import run

ROOT = Path(__file__).parents[2]


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers(workdir):
    """All that is recorded but what depends on the clock."""
    timed = ("train/img_per_s", "train/data_wait")
    return [{k: v for k, v in r.items() if k not in timed} for r in lines(workdir)]


def final(workdir):
    """Raw and averaged parameters of the newest checkpoint."""
    newest = max((workdir / "checkpoints").iterdir(), key=lambda d: int(d.name))
    return [load_for_inference(newest, ema=ema).variables for ema in (False, True)]


def at_step(monkeypatch, step, action):
    """Does something right after update `step` (counted from the start of the process)."""
    done = 0

    def advance(self):
        nonlocal done
        done += 1
        if done == step:
            action()

    monkeypatch.setattr(RunLog, "advance", advance)


_FUNCTIONS: dict[str, dict] = {}


@pytest.fixture(autouse=True)
def traced_once(monkeypatch):
    """Runs of equal configs share their functions; each would trace its own for seconds."""
    build = Experiment.from_config.__func__

    def build_or_share(cls, config):
        experiment = build(cls, config)
        names = ("bundle", "new_state", "train_step", "predict", "preview")
        own = {name: getattr(experiment, name) for name in names}
        logged = dataclasses.replace(config.train, log_every_steps=1)
        key = repr(dataclasses.replace(config, train=logged))
        return dataclasses.replace(experiment, **_FUNCTIONS.setdefault(key, own))

    monkeypatch.setattr(Experiment, "from_config", classmethod(build_or_share))


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    return tmp_path_factory.mktemp("unbroken")


@pytest.fixture
def whole(unbroken, tiny, monkeypatch):
    """The workdir of a run that nobody disturbed, with the figures of its report."""
    if not (unbroken / "config.json").exists():
        with monkeypatch.context() as patch:
            patch.setattr(loop, "write_report", write_report)
            run(tiny(), unbroken)
    return unbroken


def test_run_to_the_end(whole, tiny):
    records = lines(whole)
    training = [r for r in records if "train/loss" in r]
    assert [r["step"] for r in training] == list(range(1, 13))
    assert {"train/grad_norm", "train/lr", "train/loss", "train/img_per_s"} < training[-1].keys()
    evaluations = [r for r in records if "eval/top1" in r]
    assert [r["epoch"] for r in evaluations] == [1, 2, 3]
    assert {f"eval/{p}{m}" for p in ("", "ema_") for m in ("loss", "top1", "f1")} < (
        evaluations[-1].keys()
    )
    assert "eval/top5" not in evaluations[-1]  # two classes
    stored = json.loads((whole / "config.json").read_text())
    assert stored["metadata"] == {"class_names": ["cat", "dog"]}
    assert stored["config"]["model"]["num_classes"] == 2
    config = tiny()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=2))
    assert stored["config"] == json.loads(json.dumps(to_dict(config)))
    assert stored["total_steps"] == 12
    (events,) = (whole / "tensorboard").iterdir()
    assert b"first_batch" in events.read_bytes()
    assert all(0 <= r["train/data_wait"] <= 1 for r in training if "train/data_wait" in r)
    assert "train/data_wait" in training[-1]


def test_figures_of_a_run(whole):
    for name in ("first_batch.png", "curves.png", "confusion.png", "top_confusions.csv"):
        assert (whole / name).stat().st_size > 20
    confusion = Confusion.load(whole)
    last = lines(whole)[-1]
    assert confusion.counts.sum(axis=1).tolist() == [5, 5]
    assert np.trace(confusion.counts) / 10 == pytest.approx(last["eval/ema_top1"])
    assert confusion.class_names == ("cat", "dog")
    assert "EMA weights after 12 updates (epoch 3)" in confusion.description


def test_few_evaluation_images_are_decoded_once(tiny, monkeypatch):
    experiment = Experiment.from_config(tiny())
    with experiment.eval_batches() as batches:
        next(batches)
    assert not experiment.cached_eval_batches  # the pass was not complete
    with experiment.eval_batches() as batches:
        first = list(batches)
    with monkeypatch.context() as patch, experiment.eval_batches() as batches:
        patch.setattr(type(experiment.eval_data), "__getitem__", None)
        chex.assert_trees_all_equal(list(batches), first)
    assert sum(batch["weight"].sum() for batch in first) == len(experiment.eval_data)
    monkeypatch.setattr("vig_jax.train.experiment.CACHED_BYTES", 10 * 16 * 16 * 3 - 1)
    experiment = Experiment.from_config(tiny())
    with experiment.eval_batches() as batches:
        chex.assert_trees_all_equal(list(batches), first)
    assert not experiment.cached_eval_batches


@pytest.mark.slow
def test_learns_images_by_heart(tiny, tmp_path):
    """Noise with labels that say nothing about it: only memory can bring the loss down."""
    generator = np.random.default_rng(1)
    for label in ("heads", "tails"):
        for split, count in (("train", 8), ("val", 1)):
            (tmp_path / split / label).mkdir(parents=True)
            for i in range(count):
                noise = generator.integers(0, 256, (16, 16, 3), np.uint8)
                Image.fromarray(noise).save(tmp_path / split / label / f"{i}.png")
    config = tiny(
        data__path=str(tmp_path), data__crop="none", data__hflip=0.0, data__mixup_alpha=0.0,
        data__cutmix_alpha=0.0, data__erase_probability=0.0, model__drop_path_rate=0.0,
        train__label_smoothing=0.0, train__batch_size=16, train__epochs=60,
        train__eval_every_epochs=0, train__checkpoint_every_steps=0, optimizer__base_lr=2e-3,
    )  # fmt: skip
    run(config, tmp_path / "run")
    losses = [r["train/loss"] for r in lines(tmp_path / "run") if "train/loss" in r]
    assert losses[0] > 0.5
    assert losses[-1] < 0.01


def test_a_lost_worker_is_reported_with_advice(tiny, tmp_path, monkeypatch):
    class Broken(Iterator):
        def __next__(self):
            raise RuntimeError("Worker process was terminated unexpectedly with exit code -9")

        def __enter__(self):  # the loop closes what it opens
            return self

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(Experiment, "train_batches", lambda self, start: Broken())
    with pytest.raises(DataWorkerError, match=r"exit code -9.*lower config\.data\.workers"):
        run(tiny(), tmp_path)


def test_finished_run_is_left_alone(whole, tiny):
    before = numbers(whole)
    results = run(tiny(), whole).results
    assert numbers(whole) == before
    assert results["eval/top1"] == before[-1]["eval/top1"]


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
)
def test_stop_signal_saves_and_resuming_is_exact(
    whole, tiny, tmp_path, monkeypatch, capsys, number
):
    with monkeypatch.context() as patch:
        at_step(patch, 7, lambda: signal.raise_signal(number))  # in the middle of an epoch
        run(tiny(), tmp_path)
    assert load_for_inference(tmp_path / "checkpoints" / "7").step == 7
    message = capsys.readouterr().err
    assert f"stopped by {number.name} after step 7 of 12, saved" in message
    assert "the same command resumes" in message
    run(tiny(), tmp_path)
    assert "resuming from the checkpoint of step 7 of 12" in capsys.readouterr().err
    chex.assert_trees_all_equal(final(tmp_path), final(whole))
    assert numbers(tmp_path) == numbers(whole)


@pytest.fixture
def photos(tmp_path):
    """Images of 10 to 49 pixels a side, whose class is their colour."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 7)):
        for label in ("cat", "dog"):
            folder = tmp_path / "photos" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = generator.integers(0, 256, (*generator.integers(10, 50, 2), 3), np.uint8)
                pixels[..., 0] //= 1 + 3 * (label == "cat")
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_native_sizes(tiny, photos, tmp_path, monkeypatch, capsys):
    """The run learns, resumes to the bit, and its best weights are evaluated again."""
    settings = {"mixup_alpha": 0.0, "cutmix_alpha": 0.0, "erase_probability": 0.25}
    settings |= {"native_sizes": True, "max_tokens": 12, "row_images": 4, "row_tokens": 30}
    config = tiny(
        **{f"data__{key}": value for key, value in settings.items()},
        data__path=str(photos),
        optimizer__base_lr=1e-2,
        train__log_every_steps=4,
    )
    monkeypatch.setattr(loop, "write_report", lambda workdir: None)  # takes long
    run(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        at_step(patch, 6, lambda: signal.raise_signal(signal.SIGTERM))
        run(config, tmp_path / "run")
    assert load_for_inference(tmp_path / "run" / "checkpoints" / "6").step == 6
    run(config, tmp_path / "run")
    chex.assert_trees_all_equal(final(tmp_path / "run"), final(tmp_path / "whole"))
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    training = [record for record in numbers(tmp_path / "run") if "train/loss" in record]
    assert training[-1]["train/loss"] < 0.5 * training[0]["train/loss"]
    assert 0.5 < training[-1]["train/row_fill"] <= 1
    assert (tmp_path / "run" / "first_batch.png").stat().st_size > 1000
    last = lines(tmp_path / "run")[-1]
    assert last["eval/top1"] > 0.9
    capsys.readouterr()
    report = tmp_path / "report.json"  # of the same images, in longer rows
    options = ["--workers", "0", "--raw", "--max-tokens", "12", "--json", str(report)]
    assert main(["evaluate", str(tmp_path / "run"), *options]) == 0
    result = json.loads(report.read_text())
    best = [record for record in lines(tmp_path / "run") if record["step"] == result["step"]][-1]
    assert result["top1"] == best["eval/top1"]
    assert result["loss"] == pytest.approx(best["eval/loss"], rel=TOLERANCES["float32"].forward)
    assert main(["evaluate", str(tmp_path / "run"), "--image-size", "32"]) == 1
    assert "leave it (--image-size) out" in capsys.readouterr().err


def test_stop_during_evaluation(whole, tiny, tmp_path, monkeypatch):
    evaluate = loop.evaluate

    def interrupted(*args, **kwargs):
        signal.raise_signal(signal.SIGTERM)
        return evaluate(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate", interrupted)
        assert run(tiny(), tmp_path) == ({}, True)
    assert [d.name for d in (tmp_path / "checkpoints").iterdir()] == ["4"]
    run(tiny(), tmp_path)
    chex.assert_trees_all_equal(final(tmp_path), final(whole))
    assert numbers(tmp_path) == numbers(whole)


@pytest.mark.slow
def test_killed_and_restarted_is_exact(tiny, tmp_path, compilation_cache):
    """SIGKILL at some step of the middle of the run, through train.py, with all augmentation on."""
    config = tiny(data__rand_augment_layers=1, model__gla_implementation="reference")
    assert min(config.data.mixup_alpha, config.data.cutmix_alpha, config.data.erase_probability) > 0
    config = to_dict(config)
    page = tmp_path / "tiny.py"
    page.write_text(
        "from ml_collections import ConfigDict\n"
        f"def get_config():\n    return ConfigDict({config!r})\n"
    )
    whole, workdir = tmp_path / "whole", tmp_path / "run"
    command = [sys.executable, "train.py", f"--config={page}"]
    environment = {**os.environ, **compilation_cache}
    subprocess.run([*command, f"--workdir={whole}"], cwd=ROOT, env=environment, check=True)
    command.append(f"--workdir={workdir}")
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    metrics = workdir / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and '"step": 6' in metrics.read_text()):
        time.sleep(0.002)
    process.kill()
    output = process.communicate()[0].decode()
    assert process.returncode == -signal.SIGKILL, output
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "resuming from the checkpoint of step" in done.stderr
    chex.assert_trees_all_equal(final(workdir), final(whole))
    assert numbers(workdir) == numbers(whole)


def test_diverging_run_stops_with_the_step_and_keeps_the_last_good(tiny, tmp_path, monkeypatch):
    build = Experiment.from_config

    def poisoned(config):
        experiment = build(config)
        done = 0

        def train_step(state, batch):
            nonlocal done
            done += 1
            state, metrics = experiment.train_step(state, batch)
            bad = done >= 7
            return state, metrics | ({"loss": jnp.float32(jnp.nan)} if bad else {})

        return dataclasses.replace(experiment, train_step=train_step)

    monkeypatch.setattr(loop.Experiment, "from_config", poisoned)
    with pytest.raises(NonFiniteLossError, match="update 7: loss = nan") as error:
        run(tiny(train__log_every_steps=100), tmp_path)
    assert "last good checkpoint, of step 5" in error.value.__notes__[0]
    assert sorted(d.name for d in (tmp_path / "checkpoints").iterdir()) == ["4", "5"]


def test_workdir_of_another_config(whole, tiny):
    before = numbers(whole)
    with pytest.raises(CheckpointError, match=r"config\.optimizer\.base_lr: 0\.001 there, 0\.01"):
        run(tiny(optimizer__base_lr=0.01), whole)
    assert numbers(whole) == before


def test_changed_images_are_refused(whole, image_folder, tiny, tmp_path):
    images = shutil.copytree(image_folder, tmp_path / "images")
    shutil.copytree(whole, tmp_path / "run")
    changes = {"data__path": str(images)}
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    for split, message in (
        ("train", r"trained on other data .* new --workdir"),
        ("val", r"evaluated on other images .* new --workdir.*`vig evaluate"),
    ):
        image, away = images / split / "cat" / "0.png", images / split / "cat" / "100.png"
        image.rename(away)
        with pytest.raises(CheckpointError, match=message):
            run(tiny(**changes), tmp_path / "run")
        away.rename(image)
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_batch_that_is_more_than_the_data(tiny, tmp_path):
    with pytest.raises(ValueError, match="32 images, fewer than one batch of 64"):
        run(tiny(train__batch_size=64), tmp_path)


def test_fewer_classes_than_the_data(tiny, tmp_path):
    with pytest.raises(ValueError, match="num_classes is 1, but the data set has 2"):
        run(tiny(model__num_classes=1), tmp_path)
