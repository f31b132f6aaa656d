"""Segmenting image files, in Python and by `vig predict`."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from configs import common
from vig_jax import config as configuration
from vig_jax.cli.main import main
from vig_jax.config import recipes
from vig_jax.errors import ConfigError
from vig_jax.inference.file_predictor import output_names
from vig_jax.inference.loaded_model import load_for_inference
from vig_jax.inference.segmentation import SegmentationPredictor
from vig_jax.layers.pixels import normalise
from vig_jax.models.from_config import segmenter_from_config
from vig_jax.tasks.registry import make_task
from vig_jax.tasks.segmentation.drawing import draw_overlay, overlay, shares
from vig_jax.train.checkpoint import RunInfo
from vig_jax.weights.run_folder import save_weights

SIDE = 32
NAMES = ("wall", "sky", "$tree$")
PALETTE = ((120, 120, 120), (6, 230, 230), (4, 200, 3))
SIZES = {"square.png": (SIDE, SIDE), "wide.png": (75, 40), "sub/long.png": (300, 12)}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The workdir of a tiny segmenter with random weights, for masks whose label 0 is no class."""
    settings = recipes.ade20k("vig_t")
    settings.model.update(embed_dim=8, depth=1, num_heads=1, dtype="float32", drop_path_rate=0.0)
    settings.model.gla_implementation = "reference"
    settings.task.update(channels=4, aux_channels=0, resize_scale=(128, SIDE), eval_stride=20)
    settings.data.image_size = SIDE
    config = configuration.parse(settings)
    metadata = {"class_names": NAMES, "palette": PALETTE}
    bundle = make_task(config, metadata)
    rng = np.random.default_rng(0)
    variables = jax.tree.map_with_path(
        lambda path, leaf: (
            np.ones(leaf.shape, np.float32)
            if path[-1].key in ("var", "scale")
            else rng.normal(size=leaf.shape).astype(np.float32)
        ),
        dict(jax.eval_shape(bundle.task.init, jax.random.key(0))),
    )
    info = RunInfo(bundle.config, metadata, "", "", bundle.evaluation.primary_metric)
    workdir = tmp_path_factory.mktemp("segmenter")
    weights = {"params": variables["params"], "mutable": {"batch_stats": variables["batch_stats"]}}
    origin = {"origin": {"params": "random weights"}}
    save_weights(workdir, weights, info.to_json(0, {}) | origin)
    return workdir


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    (folder / "sub").mkdir()
    rng = np.random.default_rng(1)
    for name, (width, height) in SIZES.items():
        pixels = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / name)
    return folder


def pixels_of(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_predict_writes_label_maps_and_overlays(trained, photographs, tmp_path, capsys):
    bad = photographs / "bad.jpg"
    bad.write_bytes(b"no image")
    answers, sheet = tmp_path / "answers.json", tmp_path / "sheet.png"
    arguments = ["predict", str(trained), str(photographs), "--output", str(tmp_path / "out")]
    assert main([*arguments, "--json", str(answers), "--figure", str(sheet), "--top", "2"]) == 1
    bad.unlink()
    printed = capsys.readouterr()
    assert f"{bad}: skipped, not a JPEG" in printed.err
    assert "figure of 3 images" in printed.out
    assert pixels_of(sheet).shape[1] > 100
    found = {Path(answer["image"]).name: answer for answer in json.loads(answers.read_text())}
    assert "error" in found.pop("bad.jpg")
    for name, (width, height) in SIZES.items():
        answer = found[Path(name).name]
        stem = (tmp_path / "out" / name).with_suffix("")
        assert answer["labels"] == f"{stem}_labels.png"
        with Image.open(f"{stem}_overlay.png") as drawn:
            assert max(drawn.size) >= 512
        with Image.open(f"{stem}_labels.png") as stored:
            assert (stored.mode, stored.size) == ("P", (width, height))
            labels = np.asarray(stored)
            colours = np.asarray(stored.convert("RGB"))
        assert labels.min() >= 1  # 0 is no class in the annotations
        assert labels.max() <= len(NAMES)
        np.testing.assert_array_equal(colours, np.array(PALETTE)[labels.astype(int) - 1])
        expected = {
            NAMES[label - 1]: pytest.approx(np.mean(labels == label), abs=1e-6)
            for label in np.unique(labels)
        }
        assert {row["class"]: row["share"] for row in answer["classes"]} == expected
        first = answer["classes"][0]
        assert f"{name}: {first['class']} {first['share']:.1%}" in printed.out
    # An image of the size of the windows needs neither windows nor resizing before the model.
    loaded = load_for_inference(trained)
    image = pixels_of(photographs / "square.png")
    pixels = normalise(jnp.asarray(image)[None], loaded.config.data.mean, loaded.config.data.std)
    model = segmenter_from_config(make_task(loaded.config, loaded.metadata).config)
    (logits,) = jax.jit(model.apply)(loaded.variables, pixels)
    logits = jax.image.resize(logits, (SIDE, SIDE, len(NAMES)), "bilinear", antialias=False)
    labels = pixels_of(tmp_path / "out" / "square_labels.png")
    np.testing.assert_array_equal(labels, np.argmax(logits, -1) + 1)


def test_evaluate_writes_the_scores_of_each_class(trained, photographs, tmp_path, capsys):
    images, masks = (tmp_path / name / "validation" for name in ("images", "annotations"))
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    for name, (width, height) in SIZES.items():
        shutil.copy(photographs / name, images / Path(name).name)
        mask = np.arange(width * height).reshape(height, width) % (len(NAMES) + 1)
        Image.fromarray(mask.astype(np.uint8)).save(masks / f"{Path(name).stem}.png")
    results, file = tmp_path / "results", tmp_path / "metrics.json"
    arguments = ["evaluate", str(trained), "--data-path", str(tmp_path), "--batch-size", "2"]
    arguments += ["--workers", "0", "--json", str(file), "--results", str(results)]
    assert main([*arguments, "--set", "eval_flip=True"]) == 0
    printed = capsys.readouterr().out
    assert "3 images" in printed
    metrics = json.loads(file.read_text())
    assert f"miou {metrics['miou']:.4f}" in printed
    rows = metrics["classes"]
    assert [row["class"] for row in rows] == list(NAMES)
    assert metrics["miou"] == pytest.approx(np.mean([row["iou"] for row in rows]), abs=1e-6)
    worst = {row["image"] for row in metrics["worst_images"]}
    assert {Path(name).name for name in worst} == {Path(name).name for name in SIZES}
    with np.load(results / "segmentation.npz") as stored:
        pixels = sum(width * height for width, height in SIZES.values())
        assert abs(stored["confusion"].sum() / (0.75 * pixels) - 1) < 0.01
    assert (results / "worst_images.png").exists()


def test_settings_of_the_evaluation(trained):
    changed = load_for_inference(trained, settings={"eval_mode": "whole", "eval_scales": (1, 2)})
    assert changed.config.task.eval_mode == "whole"
    assert changed.config.task.eval_scales == (1.0, 2.0)
    assert changed.config.task.channels == load_for_inference(trained).config.task.channels
    with pytest.raises(ConfigError, match=r"eval_modes is not a setting.*did you mean 'eval_mode'"):
        load_for_inference(trained, settings={"eval_modes": "whole"})
    with pytest.raises(ConfigError, match="channels is not a setting of the evaluation of a run"):
        load_for_inference(trained, settings={"channels": 3})
    with pytest.raises(ConfigError, match=r"config\.task\.eval_mode"):
        load_for_inference(trained, settings={"eval_mode": "all"})


def test_a_classifier_is_no_segmenter(trained):
    loaded = load_for_inference(trained)
    config = configuration.parse(common.get_config())
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, num_classes=3))
    with pytest.raises(ConfigError, match="the task is 'classification', not segmentation"):
        SegmentationPredictor(dataclasses.replace(loaded, config=config))


def test_names_of_outputs(tmp_path):
    files = [tmp_path / name for name in ("a/x.jpg", "b/x.jpg", "b/y.png", "b/y.jpg", "b/z.w.png")]
    names = ["a/x", "b/x", "b/y.png", "b/y.jpg", "b/z.w"]
    assert output_names(files) == dict(zip(files, map(Path, names), strict=True))
    assert output_names(files[:1]) == {files[0]: Path("x")}
    assert output_names(files[:1] * 2) == {files[0]: Path("x")}


def test_overlay_shows_photograph_where_there_is_no_class():
    image = np.full((4, 6, 3), 100, np.uint8)
    labels = np.full((4, 6), 1, np.uint8)
    labels[:, 3:] = 255
    mixed = overlay(image, labels, PALETTE)
    np.testing.assert_array_equal(mixed[:, 3:], image[:, 3:])
    np.testing.assert_array_equal(mixed[0, 0], np.rint(0.6 * np.array(PALETTE[1]) + 40))
    assert (mixed[:, 2] < mixed[:, 1]).all()  # the border is darker
    assert shares(labels) == [(1, 0.5)]


@pytest.mark.parametrize("shape", [(3, 5), (30, 2500)])
def test_overlays_of_small_and_large_photographs(shape, tmp_path):
    labels = np.zeros(shape, np.uint8)
    labels[:1] = 7  # without a name
    draw_overlay(np.zeros((*shape, 3), np.uint8), labels, NAMES, PALETTE, tmp_path / "o.png")
    with Image.open(tmp_path / "o.png") as drawn:
        assert 500 < drawn.width < 2500
