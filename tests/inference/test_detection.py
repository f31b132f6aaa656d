"""Finding objects in image files, with a detector that knows what it will find."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from configs import common
from tests import coco_case
from tests.tasks import toy
from tests.tasks.detection.stand_in import StandIn, detections
from vig_jax.cli import weights
from vig_jax.cli.main import main
from vig_jax.config import DetectionConfig, parse, to_dict
from vig_jax.data.datasets.fashion_scenes import FashionScenesDataset
from vig_jax.data.preprocess.detection import DetectionPreprocess
from vig_jax.errors import ConfigError, NonFiniteLossError
from vig_jax.inference.detection import DetectionPredictor
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.metrics.coco_matching import Found
from vig_jax.ops import rle
from vig_jax.tasks.detection.drawing import draw_found, mask_overlay
from vig_jax.tasks.detection.evaluation import DetectionEvaluation
from vig_jax.tasks.detection.report import REPORT
from vig_jax.tasks.registry import TaskBundle, TaskEntry, register_task

RESIZED = 96
SIDES = (40, 72, 120)  # of the photographs, which are scenes
FACTS = FashionScenesDataset("eval", 40, 1).info.metadata
THRESHOLD = 0.45


@dataclasses.dataclass(frozen=True)
class KnownConfig(DetectionConfig):
    """Settings of the task below."""


def make(config, metadata):
    """Builds a task whose evaluation has the stand-in instead of a detector."""
    bundle = toy.make(parse(toy.page()), {"sides": [3]})
    evaluation = DetectionEvaluation(
        model=StandIn(),
        data=config.data,
        settings=config.task,
        class_names=metadata["instance_names"],
        palette=tuple(map(tuple, metadata["instance_palette"])),
        category_ids=tuple(metadata["category_ids"]),
    )
    preprocess = DetectionPreprocess(config.data, config.task, train=False)
    return TaskBundle(config, bundle.task, evaluation, preprocess, preprocess)


register_task(
    "known_detections",
    TaskEntry(make, REPORT, file_predictor="vig_jax.inference.detection:DetectionPredictor"),
    KnownConfig,
)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Scenes of different sizes; the red of the first pixel is the number of the scene, times 9."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, side in enumerate(SIDES):
        pixels = FashionScenesDataset("eval", side, 3)[number]["image"].copy()
        pixels[:2, :2, 0] = 9 * number
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def loaded():
    """The stand-in with detections for the photographs."""
    values = to_dict(parse(common.get_config()))
    task = {"name": "known_detections", "resize_scale": (RESIZED, RESIZED)}
    config = parse({**values, "task": {**task, "buckets": ((RESIZED, RESIZED),)}})
    data = config.data
    tables = []
    for number, side in enumerate(SIDES):
        scale = np.full(2, RESIZED / side, np.float32)
        rows = detections(FashionScenesDataset("eval", side, 3), scale, seed=number)
        tables.append({name: values[number] for name, values in rows.items()})
    table = {name: np.stack([one[name] for one in tables]) for name in tables[0]}
    keys = ((9 * np.arange(len(SIDES)) / 255 - data.mean[0]) / data.std[0]).astype(np.float32)
    return LoadedModel(config, {"table": {**table, "keys": keys}}, 0, FACTS, None, "known weights")


def test_predict_draws_objects_and_writes_a_data_set(
    photographs, loaded, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(weights, "restore", lambda args, run: loaded)
    bad = photographs / "bad.jpg"
    bad.write_bytes(b"no image")
    output, answers, sheet = tmp_path / "out", tmp_path / "answers.json", tmp_path / "sheet.png"
    arguments = ["predict", "run", str(photographs), "--output", str(output), "--top", "1"]
    arguments += ["--json", str(answers), "--figure", str(sheet), "--threshold", str(THRESHOLD)]
    assert main(arguments) == 1
    bad.unlink()
    printed = capsys.readouterr()
    assert f"{bad}: skipped, not a JPEG" in printed.err
    assert "figure of 3 images" in printed.out
    assert sheet.exists()
    found = json.loads(answers.read_text())
    assert [set(answer) for answer in found if "error" in answer] == [{"image", "error"}]
    found = [answer for answer in found if "error" not in answer]
    stored = json.loads((output / "detections.json").read_text())
    assert [row["name"] for row in stored["categories"]] == list(FACTS["instance_names"])
    table = loaded.variables["table"]
    truths = coco_case.truths(stored)  # masks and boxes can be read again
    for number, side in enumerate(SIDES):
        answer, truth = found[number], truths[number]
        assert answer["image"] == stored["images"][number]["file_name"]
        assert (answer["width"], answer["height"]) == truth.size == (side, side)
        with Image.open(output / f"{number}_objects.png") as drawn:
            assert min(drawn.size) >= 512
        scores = table["scores"][number]
        order = np.argsort(-scores, kind="stable")
        order = order[scores[order] >= THRESHOLD]
        assert len(order)
        np.testing.assert_array_equal(truth.labels, table["classes"][number, order])
        boxes = np.clip(table["boxes"][number, order] * side / RESIZED, 0, side)
        np.testing.assert_allclose(truth.boxes, boxes, atol=2e-3)
        given = [row["score"] for row in answer["detections"]]
        np.testing.assert_allclose(given, scores[order], atol=1e-6)
        names = [FACTS["instance_names"][label] for label in truth.labels]
        assert [row["class"] for row in answer["detections"]] == names
        assert [rle.area(mask) for mask in truth.masks] == truth.areas.tolist()
        assert f"{number}.png: {names[0]} {given[0]:.0%}  and {len(order) - 1} more" in printed.out


def test_predictions_are_those_of_evaluation(photographs, loaded):
    predictor = DetectionPredictor(loaded)
    image = np.asarray(Image.open(photographs / "1.png"))
    everything = predictor.predict(image)
    assert (np.diff(everything.scores) <= 0).all()
    truth = FashionScenesDataset("eval", SIDES[1], 3).ground_truth(1)
    best = rle.iou(everything.masks, truth.masks).max(axis=0)
    assert np.median(best) > 0.7  # masks of 28 cells, of boxes with errors
    some = predictor.predict(image, THRESHOLD)
    assert 0 < len(some.scores) < len(everything.scores)
    assert min(some.scores) >= THRESHOLD
    spoilt = {**loaded.variables["table"], "scores": np.full((len(SIDES), 12), np.nan, np.float32)}
    overflows = DetectionPredictor(dataclasses.replace(loaded, variables={"table": spoilt}))
    with pytest.raises(NonFiniteLossError, match="not finite"):
        overflows.predict(image)


def test_a_model_of_another_task(loaded):
    config = parse(toy.page())
    other = dataclasses.replace(loaded, config=config, metadata={"sides": [3]})
    with pytest.raises(ConfigError, match="the task is 'squares', not detection"):
        DetectionPredictor(other)


def test_thresholds_are_checked(capsys):
    for value in ("1.5", "-0.1", "high"):
        with pytest.raises(SystemExit):
            main(["predict", "run", "photo.jpg", f"--threshold={value}"])
        assert "--threshold" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(3, 5), (12, 2500)])
@pytest.mark.parametrize("classes", [1, 2])
def test_drawings_of_small_and_large_photographs(shape, classes, tmp_path):
    image = np.full((*shape, 3), 60, np.uint8)
    mask = np.zeros(shape, bool)
    mask[:2, 1:4] = True
    found = Found(
        boxes=np.array([[1.0, 0, 4, 2]]),
        scores=np.array([0.9]),
        labels=np.array([classes - 1], np.int32),
        masks=(rle.encode(mask),),
    )
    names, palette = ("$a$", "b")[:classes], ((255, 0, 0), (0, 0, 255))[:classes]
    draw_found(image, found, names, palette, tmp_path / "drawn.png")
    with Image.open(tmp_path / "drawn.png") as drawn:
        pixels = np.asarray(drawn.convert("RGB"))
    assert 500 < max(pixels.shape) < 2500
    height, width = pixels.shape[:2]
    below = pixels[int(0.9 * height), int(0.9 * width)]
    np.testing.assert_array_equal(below, 60)
    assert np.abs(pixels.astype(int) - 60).max() > 100


def test_masks_have_borders_and_the_first_is_on_top():
    image = np.full((7, 9, 3), 100, np.uint8)
    masks = np.zeros((2, 7, 9), bool)
    masks[0, 1:6, 1:6] = True
    masks[1, 2:5, 3:8] = True
    colours = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)
    mixed = mask_overlay(image, masks, colours)
    np.testing.assert_array_equal(mixed[1, 1], colours[0])
    np.testing.assert_array_equal(mixed[2, 7], colours[1])
    np.testing.assert_array_equal(mixed[3, 5], colours[0])  # the border of both
    np.testing.assert_array_equal(mixed[3, 2], np.rint(0.55 * 100 + 0.45 * colours[0]))
    np.testing.assert_array_equal(mixed[0, 0], image[0, 0])
