"""Runs of version 0.1.0, from before there were tasks, load and resume."""

import json
import tarfile
from pathlib import Path

import pytest

from vig_jax.config import parse, recipes
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.train.loop import run

ARCHIVE = Path(__file__).parent / "golden" / "run_before_tasks.tar.xz"


@pytest.fixture
def workdir(tmp_path):
    """A run of 4 updates that was stopped after 2; its metrics.jsonl is that of the whole run."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


def config():
    values = recipes.imagenet("vig_t")
    values.model.update(img_size=28, patch_size=14, embed_dim=16, depth=1, num_heads=1)
    values.model.update(dtype="float32", drop_path_rate=0.1, gla_implementation="reference")
    values.data.update(source="fashion_mnist", image_size=28, workers=0, mixup_group=4)
    values.data.update(mean=(0.286,) * 3, std=(0.353,) * 3, rand_augment_layers=0)
    values.optimizer.update(lr_batch=8, warmup_epochs=0.0, warmup_steps=1)
    values.train.update(batch_size=8, epochs=0, steps=4, ema_decay=0.9, log_every_steps=1)
    values.train.update(eval_every_epochs=0, checkpoint_every_steps=2, compilation_cache="")
    return parse(values)


def test_loads(workdir):
    loaded = load_for_inference(workdir)
    assert (loaded.step, loaded.ema, loaded.config.task.name) == (2, True, "classification")
    assert loaded.metadata["class_names"][9] == "Ankle boot"
    assert loaded.variables["params"]["head"]["kernel"].shape == (16, 10)


def test_resumes(workdir):
    stored = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    run(config(), workdir)
    resumed = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in resumed] == [1, 2, 3, 4, 4]
    for ours, theirs in zip(resumed, stored, strict=True):
        for name in theirs.keys() - {"train/img_per_s", "train/data_wait"}:
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4), name
