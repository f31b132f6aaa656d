"""A run of segmentation on a folder of masks: train, resume, evaluate, report, predict."""

import json
import shutil

import chex
import numpy as np
import pytest
from PIL import Image

from vig_jax.cli.main import main
from vig_jax.config import parse, recipes
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.train.loop import run

NAMES = ("ground", "disk", "bar")


def scene(generator, width, height):
    """Returns an image and its mask: a green disk (1), a red bar (2), and an ignored border."""
    mask = np.zeros((height, width), np.uint8)
    y, x = np.mgrid[:height, :width]
    center = generator.uniform(0.3, 0.7, 2) * (height, width)
    mask[(y - center[0]) ** 2 + (x - center[1]) ** 2 < (height / 4) ** 2] = 1
    left = int(generator.integers(0, width - 12))
    mask[:, left : left + 8] = 2
    image = generator.integers(0, 80, (height, width, 3)).astype(np.uint8)
    image[mask == 1, 1] += 150
    image[mask == 2, 0] += 150
    mask[:2] = 255
    return image, mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("masks")
    generator = np.random.default_rng(0)
    for split, sizes in (("train", [(70, 60)] * 10), ("val", [(70, 60), (64, 90), (50, 50)])):
        for kind in ("images", "annotations"):
            (root / kind / split).mkdir(parents=True)
        for i, size in enumerate(sizes):
            image, mask = scene(generator, *size)
            Image.fromarray(image).save(root / "images" / split / f"{i}.png")
            Image.fromarray(mask).save(root / "annotations" / split / f"{i}.png")
    (root / "classes.txt").write_text("\n".join(NAMES))
    return root


def config(folder):
    values = recipes.ade20k("vig_t")
    values.model.update(patch_size=16, embed_dim=32, depth=1, num_heads=1, dtype="float32")
    values.task.update(channels=8, aux_channels=8, resize_scale=(128, 64), eval_stride=40)
    values.task.reduce_zero_label = False
    values.data.update(source="mask_folder", path=str(folder), image_size=64, workers=0)
    values.optimizer.update(layer_decay=1.0, base_lr=3e-3, warmup_steps=2, lr_batch=4)
    values.train.update(batch_size=4, steps=6, eval_every_steps=0, checkpoint_every_steps=3)
    values.train.update(log_every_steps=1, ema_decay=0.5, compilation_cache="")
    return parse(values)


@pytest.fixture(scope="module")
def whole(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run(config(folder), workdir)
    return workdir


def test_trains(whole):
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    losses = [record["train/loss"] for record in records if "train/loss" in record]
    assert len(losses) == 6
    assert losses[-1] < losses[0] == pytest.approx(1.4 * np.log(3), rel=0.05)
    assert 0 < records[-1]["eval/ema_miou"] <= records[-1]["eval/ema_aacc"] <= 1
    assert (whole / "first_batch.png").exists()


@pytest.mark.slow  # the loop's resuming knows no task: test_toy and train/test_run check it
def test_resumes_to_the_bit(folder, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    run(config(folder), tmp_path / "run")
    for ema in (False, True):
        again, first = (
            load_for_inference(workdir / "checkpoints" / "6", ema=ema).variables
            for workdir in (tmp_path / "run", whole)
        )
        assert first.keys() == {"params", "batch_stats"}
        chex.assert_trees_all_equal(again, first)


def test_evaluates_reports_and_predicts(folder, whole, tmp_path, capsys):
    assert main(["evaluate", str(whole), "--json", str(tmp_path / "metrics.json")]) == 0
    records = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("miou", "macc", "aacc"):
        assert metrics[name] == pytest.approx(records[-1][f"eval/ema_{name}"])
    assert main(["report", str(whole)]) == 0
    assert {"class_iou.png", "confusion.png", "worst_images.png"} <= {
        path.name for path in whole.iterdir()
    }
    photo = folder / "images" / "val" / "1.png"
    assert main(["predict", str(whole), str(photo), "--output", str(tmp_path / "out")]) == 0
    with Image.open(tmp_path / "out" / "1_labels.png") as labels:
        assert labels.size == (64, 90)
        assert set(np.unique(np.asarray(labels)).tolist()) <= {0, 1, 2}
    assert (tmp_path / "out" / "1_overlay.png").exists()
    assert "miou" in capsys.readouterr().out


def test_other_classes_are_refused(folder, whole, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    (other / "classes.txt").write_text("ground\nbar\ndisk")
    assert main(["evaluate", str(whole), "--data-path", str(other)]) == 1
    assert "class 1 is bar, not disk" in capsys.readouterr().err
