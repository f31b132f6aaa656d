"""A run of detection on composed scenes: train, resume, evaluate, report, predict, convert."""

import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from vig_jax.cli.main import main
from vig_jax.config import parse, recipes
from vig_jax.data import register_dataset
from vig_jax.data.datasets.fashion_scenes import FashionScenesDataset
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.tasks.registry import make_task
from vig_jax.train.loop import run

pytestmark = pytest.mark.usefixtures("compilation_cache")

SIZES = {"img_size": 64, "embed_dim": 16, "depth": 1, "num_heads": 1}
LENGTHS = {"train": 12, "eval": 5}
register_dataset(
    "few_scenes", lambda data, split: FashionScenesDataset(split, data.image_size, LENGTHS[split])
)


def config():
    values = recipes.coco("vig_t")  # compiles faster than vig_h_t
    values.model.update(SIZES)
    values.model.update(dtype="float32", gla_implementation="reference")
    values.task.update(resize_scale=(64, 64), buckets=((64, 64),), max_boxes=6, mask_side=14)
    values.task.update(channels=8, box_channels=16, anchor_scale=3.0, rpn_samples=32)
    values.task.update(proposals=12, train_level_proposals=12, eval_level_proposals=12)
    values.task.update(roi_samples=16, detections=8, score_threshold=0.0)
    values.data.update(source="few_scenes", image_size=64, workers=0)
    values.optimizer.update(base_lr=3e-3, warmup_steps=2, lr_batch=4, milestones=(1,))
    values.optimizer.layer_decay = 1.0
    values.train.update(batch_size=4, epochs=2, eval_every_epochs=0, checkpoint_every_steps=3)
    values.train.update(log_every_steps=1, ema_decay=0.5, compilation_cache="")
    return parse(values)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    run(config(), workdir)
    return workdir


def records(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_trains(whole):
    found = records(whole)
    losses = [record["train/loss"] for record in found if "train/loss" in record]
    assert len(losses) == 6
    assert losses[-1] < losses[0]
    parts = ("rpn_cls", "rpn_bbox", "cls", "bbox", "mask")
    assert losses[0] == pytest.approx(sum(found[0][f"train/loss_{part}"] for part in parts))
    assert 0 <= found[-1]["eval/ema_mask_ap"] <= found[-1]["eval/ema_mask_ap50"] <= 1
    assert (whole / "first_batch.png").exists()


@pytest.mark.slow  # the loop's resuming knows no task: test_toy and train/test_run check it
def test_resumes_to_the_bit(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "6")
    run(config(), tmp_path / "run")
    for ema in (False, True):
        again, first = (
            load_for_inference(workdir / "checkpoints" / "6", ema=ema).variables
            for workdir in (tmp_path / "run", whole)
        )
        chex.assert_trees_all_equal(again, first)


def test_evaluates_and_reports(whole, tmp_path, capsys):
    options = ["--results", str(tmp_path), "--json", str(tmp_path / "metrics.json")]
    assert main(["evaluate", str(whole), *options]) == 0
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    for name in ("box_ap", "box_ap50", "mask_ap"):
        assert metrics[name] == pytest.approx(records(whole)[-1][f"eval/ema_{name}"])
    assert json.loads((tmp_path / "detections.bbox.json").read_text())
    assert main(["report", str(whole)]) == 0
    assert {"class_ap.png", "precision_recall.png"} <= {path.name for path in whole.iterdir()}
    assert "box_ap" in capsys.readouterr().out


def test_predicts_and_converts(whole, tmp_path, capsys):
    """A file of the run finds the same objects as the run, which is asked for the best four."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for index in range(2):
        image = FashionScenesDataset("eval", 64, 2)[index]["image"]
        Image.fromarray(image[: 64 - 20 * index]).save(photos / f"{index}.png")
    file = tmp_path / "detector.safetensors"
    assert main(["convert", str(whole), str(file), "--verify"]) == 0
    from_file = ["--weights", str(file), "--model", "vig_t"]
    from_file += [word for key, value in SIZES.items() for word in ("--set", f"{key}={value}")]
    found = []
    for number, source in enumerate(([str(whole)], from_file)):
        out = tmp_path / str(number)
        options = [str(photos), "--output", str(out), "--threshold", "0.0"]
        best = ["--set", "detections=4"]
        words = [*options, *source] if number else [*source, *options, *best]
        capsys.readouterr()
        assert main(["predict", *words]) == 0
        assert capsys.readouterr().out.count("%") >= 2
        found.append(json.loads((out / "detections.json").read_text()))
        assert (out / "1_objects.png").exists()
    for image in (1, 2):
        ours, theirs = (
            [row["bbox"] for row in x["annotations"] if row["image_id"] == image] for x in found
        )
        assert (len(ours), len(theirs)) == (4, 8)
        np.testing.assert_allclose(ours, theirs[:4], rtol=1e-4)
    assert found[0]["categories"] == found[1]["categories"]
    stored = found[1]
    assert [image["height"] for image in stored["images"]] == [64, 44]
    rows = stored["annotations"]
    assert {row["segmentation"]["size"][0] for row in rows} == {64, 44}
    assert max(row["category_id"] for row in rows) <= len(stored["categories"])


def test_the_preview_has_the_objects_of_the_batch():
    bundle = make_task(config(), FashionScenesDataset("train", 64, 4).info.metadata)
    example = FashionScenesDataset("train", 64, 4)[2]
    arrays = bundle.train_preprocess(example, None)
    batch = {name: jnp.stack([jnp.asarray(arrays[name])] * 2) for name in bundle.task.batch_spec}
    shown = bundle.preview.inputs(batch, jax.random.key(0), np.array([1]))
    assert shown.pixels.shape == (1, 64, 64, 3)
    flipped = bool((arrays["boxes"][0] != example["boxes"][0]).any())
    expected = example["image"][:, ::-1] if flipped else example["image"]
    np.testing.assert_array_equal(shown.pixels[0], expected)
    assert shown.valid.sum() == len(example["boxes"])
