"""Evaluation of detection on scenes, with a detector that knows what it will find."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from configs import common
from tests import coco_case, golden_det
from tests.tasks import toy
from tests.tasks.detection.stand_in import LOGIT, StandIn, detections
from vig_jax.config import DetectionConfig, parse
from vig_jax.data.datasets import fashion_mnist
from vig_jax.data.datasets.fashion_scenes import FashionScenesDataset
from vig_jax.data.preprocess.detection import DetectionPreprocess
from vig_jax.errors import DataSetError, ReportError
from vig_jax.evaluation.evaluate import evaluate, make_predict_step
from vig_jax.metrics.coco_ap import average_precision
from vig_jax.metrics.coco_matching import match
from vig_jax.ops import rle
from vig_jax.sharding.mesh import make_mesh
from vig_jax.tasks.detection.evaluation import DetectionEvaluation
from vig_jax.tasks.detection.found import found_in_image
from vig_jax.tasks.detection.report import REPORT
from vig_jax.tasks.detection.results import LEAST_SCORE, MOST_WORST, DetectionResults
from vig_jax.tasks.protocol import Detailed, Evaluation, Exporting, NeedsDataset

COUNT, SIDE, RESIZED = 17, 72, 96
DATASET = FashionScenesDataset("eval", SIDE, COUNT)
SCALE = np.full(2, RESIZED / SIDE, np.float32)
BATCH = 8


def evaluation(masks=True, dataset=DATASET):
    data = parse(common.get_config()).data
    settings = DetectionConfig(
        masks=masks, resize_scale=(RESIZED, RESIZED), buckets=((RESIZED, RESIZED + 32),)
    )
    facts = DATASET.info.metadata
    found = DetectionEvaluation(
        model=StandIn(masks=masks),
        data=data,
        settings=settings,
        class_names=facts["instance_names"],
        palette=tuple(map(tuple, facts["instance_palette"])),
        category_ids=tuple(facts["category_ids"]),
    )
    return found.with_dataset(dataset) if dataset else found


@pytest.fixture(scope="module")
def batches():
    """All scenes, the last batch filled with rows that do not count."""
    task = evaluation()
    preprocess = DetectionPreprocess(task.data, task.settings, train=False)
    rows = []
    for index in [*range(COUNT), *[-1] * (-COUNT % BATCH)]:
        row = dict(preprocess(DATASET[max(index, 0)], None))
        row["image"] = row["image"].copy()
        row["image"][0, 0, 0] = 9 * index if index >= 0 else 255
        rows.append(row | {"index": np.int64(index), "weight": np.float32(index >= 0)})
    return [
        {name: np.stack([row[name] for row in rows[start : start + BATCH]]) for name in rows[0]}
        for start in range(0, len(rows), BATCH)
    ]


@pytest.fixture(scope="module")
def table():
    return detections(DATASET, SCALE)


def run(task, batches, table):
    """Runs the compiled evaluation."""
    mesh = make_mesh()
    red, deviation = task.data.mean[0], task.data.std[0]
    keys = ((9 * np.arange(COUNT) / 255 - red) / deviation).astype(np.float32)
    variables = {"table": {**table, "keys": keys}}
    predict = make_predict_step(task, mesh=mesh)
    sets = {"": variables}
    return evaluate(task, predict, sets, batches, mesh, on_batch=lambda batch: None)[""]


@pytest.fixture(scope="module")
def state(batches, table):
    return run(evaluation(), batches, table)


def test_metrics_are_those_of_the_exported_results(state, tmp_path):
    task = evaluation()
    for protocol in (Evaluation, Detailed, Exporting, NeedsDataset):
        assert isinstance(task, protocol)
    assert sorted(state.images) == list(range(COUNT))
    metrics = task.compute(state)
    assert task.primary_metric in metrics
    assert 0.1 < metrics["box_ap"] < metrics["box_ap50"] < 0.95
    assert 0.1 < metrics["mask_ap"] < metrics["mask_ap50"] < 0.95
    assert not {"box_ap_m", "mask_ap_m"} - set(metrics)
    assert not {"box_ap_l", "mask_ap_l"} & set(metrics)  # no object is so large
    truths = [DATASET.ground_truth(index) for index in range(COUNT)]
    categories = {"categories": [{"id": i} for i in DATASET.info.metadata["category_ids"]]}
    boxes, masks = (json.loads(file.read_text()) for file in task.export(state, tmp_path))
    assert not any("bbox" in row for row in masks)
    assert not any("segmentation" in row for row in boxes)
    rows = [a | b for a, b in zip(boxes, masks, strict=True)]
    for kind in ("box", "mask"):
        found = [coco_case.detections(categories, rows, t.image_id) for t in truths]
        images = [match(t, f, kind) for t, f in zip(truths, found, strict=True)]
        expected = average_precision(images, len(categories["categories"])).summary()
        for name in ("ap", "ap50", "ap75", "ap_s", "ap_m"):
            assert metrics[f"{kind}_{name}"] == pytest.approx(expected[name], abs=1e-9)


def test_perfect_detections(batches):
    exact = detections(DATASET, SCALE, count=20, noise=0.0)
    for index in range(COUNT):
        truth = DATASET.ground_truth(index)
        kept = np.zeros(20, bool)
        for box, label in zip(truth.boxes, truth.labels, strict=True):
            same = np.abs(exact["boxes"][index] - box * SCALE[0]).max(axis=1) < 1e-3
            kept[np.argmax(same)] = True
            exact["classes"][index, np.argmax(same)] = label
        exact["classes"][index, ~kept] = -1
    metrics = evaluation().compute(run(evaluation(), batches, exact))
    assert metrics["box_ap"] == 1
    assert metrics["mask_ap50"] == 1
    assert metrics["mask_ap"] > 0.9  # a mask has 28 cells along a side of its box


def test_states_of_processes_are_merged(state, batches, table):
    task = evaluation()
    parts = [run(task, batches[i::2], table) for i in range(2)]
    merged = task.merge(parts)
    assert task.compute(merged) == task.compute(state)
    assert [w.index for w in merged.worst] == [w.index for w in state.worst]
    assert merged.cut == state.cut == COUNT - 2  # candidates are 8, 9, ..., the limit is 9


def test_boxes_alone(batches, table, tmp_path):
    task = evaluation(masks=False)
    state = run(task, batches, table)
    metrics = task.compute(state)
    assert {name.partition("_")[0] for name in metrics} == {"box"}
    (file,) = task.export(state, tmp_path)
    assert file.name == "detections.bbox.json"
    task.save(state, tmp_path, "boxes")
    loaded = DetectionResults.load(tmp_path)
    assert set(loaded.scores) == {"box"}
    assert loaded.worst[0].truth.masks is not None  # of the data set
    assert loaded.worst[0].found.masks is None
    assert len(REPORT.draw(tmp_path)) == 4


def test_results_are_saved_and_drawn(state, tmp_path):
    task = evaluation()
    task.save(state, tmp_path, "weights $a$")
    loaded = DetectionResults.load(tmp_path)
    assert loaded.class_names == fashion_mnist.CLASS_NAMES
    metrics = task.compute(state)
    for kind in ("box", "mask"):
        assert loaded.scores[kind].summary()["ap"] == metrics[f"{kind}_ap"]
    for before, after in zip(state.worst, loaded.worst, strict=True):
        assert (before.index, before.ap, before.objects) == (after.index, after.ap, after.objects)
        np.testing.assert_array_equal(before.image, after.image)
        for old, new in ((before.truth, after.truth), (before.found, after.found)):
            for x, y in zip(old, new, strict=True):
                np.testing.assert_array_equal(x, y)
    written = REPORT.draw(tmp_path)
    assert [file.name for file in written] == [
        "class_ap.csv",
        "class_ap.png",
        "precision_recall.png",
        "worst_images.png",
    ]
    assert all(file.stat().st_size for file in written)
    with written[0].open() as file:
        rows = list(csv.DictReader(file))
    known = [float(row["box_ap"]) for row in rows if row["box_ap"]]
    assert np.mean(known) == pytest.approx(metrics["box_ap"], abs=1e-6)
    (tmp_path / "detection.npz").write_bytes(b"no file")
    with pytest.raises(ReportError, match="is damaged"):
        REPORT.draw(tmp_path)
    assert REPORT.draw(tmp_path / "nowhere") == []


def test_the_worst_images_come_first(state):
    details = evaluation().details(state, DATASET.name_of)
    worst = details["worst_images"]
    assert len(worst) == MOST_WORST
    assert [row["ap"] for row in worst] == sorted(row["ap"] for row in worst)
    assert worst[0]["image"] == DATASET.name_of(state.worst[0].index)
    for image in state.worst:
        truth = DATASET.ground_truth(image.index)
        assert image.objects == len(truth.labels)
        assert image.image.shape == (SIDE, SIDE, 3)  # it was enlarged for the model
        shown = zip(image.truth.boxes, image.truth.masks, strict=True)
        for box, mask in shown:
            x1, y1, x2, y2 = box.astype(int)
            assert mask[y1:y2, x1:x2].sum() == mask.sum() > 0
        assert (image.found.scores >= LEAST_SCORE).all()
        assert (np.diff(image.found.scores) <= 0).all()
    counted = {row["class"]: row["objects"] for row in details["classes"]}
    labels = np.concatenate([DATASET.ground_truth(i).labels for i in range(COUNT)])
    assert list(counted.values()) == np.bincount(labels, minlength=10).tolist()
    assert 0 < details["mask_ar10"] < 1
    assert np.isnan(details["box_ar_l"])


def test_outputs_that_are_not_finite(batches, table):
    spoilt = table | {"masks": table["masks"].copy()}
    spoilt["masks"][3, 0] = np.nan
    task = evaluation()
    assert np.isnan(list(task.compute(run(task, batches, spoilt)).values())).all()


def test_data_sets_that_cannot_be_evaluated(batches, table):
    task = evaluation()
    with pytest.raises(DataSetError, match="none of the images to evaluate can be decoded"):
        task.compute(task.init())
    with pytest.raises(DataSetError, match=r"has no boxes of objects.*config\.data\.source"):
        task.with_dataset(fashion_mnist.FashionMnistDataset("eval"))

    class Crowds(FashionScenesDataset):
        def ground_truth(self, index):
            truth = super().ground_truth(index)
            return truth._replace(crowd=np.ones(len(truth.labels), bool))

    crowds = Crowds("eval", SIDE, COUNT)
    none = r"none of the 17 images .* has an object that counts"
    with pytest.raises(DataSetError, match=none):
        task.with_dataset(crowds)
    state = run(dataclasses.replace(task, dataset=crowds), batches, table)
    assert not state.worst
    with pytest.raises(DataSetError, match=none):
        task.compute(state)

    class Boxes(FashionScenesDataset):
        @property
        def info(self):
            facts = super().info
            return dataclasses.replace(facts, metadata={**facts.metadata, "has_masks": False})

    boxes = Boxes("eval", SIDE, COUNT)
    with pytest.raises(DataSetError, match=r"has boxes alone, .*config\.task\.masks=False"):
        task.with_dataset(boxes)
    assert evaluation(masks=False).with_dataset(boxes).dataset is boxes


def test_a_bundle_hands_over_the_data_set():
    bundle = toy.make(parse(toy.page()), {"sides": [3]})
    assert bundle.evaluated_on(DATASET) is bundle  # its evaluation needs batches alone
    task = dataclasses.replace(evaluation(dataset=None), category_ids=())
    task = dataclasses.replace(bundle, evaluation=task).evaluated_on(DATASET).evaluation
    assert task.dataset is DATASET
    assert list(task.category_ids) == DATASET.info.metadata["category_ids"]


def test_masks_of_detections_are_pasted():
    """Logits over boxes become the masks of mmdet in the stored image."""
    golden = golden_det.load("masks")
    height, width = golden.facts["image"]
    values, boxes = golden.arrays["paste_values"], golden.arrays["paste_boxes"]
    expected = golden_det.unpack(golden.arrays["mm_pasted_bits"], width)
    inside = np.all((boxes >= 0) & (boxes <= [width, height, width, height]), axis=1)
    assert inside.any()
    scale = np.array([2.0, 0.5], np.float32)
    with np.errstate(divide="ignore"):
        logits = np.log(values) - np.log1p(-values)
    outputs = {
        "boxes": boxes * np.tile(scale, 2),
        "scores": np.linspace(1, 0.5, len(boxes)),
        "classes": np.where(inside, 3, -1),
        "masks": np.clip(logits, -LOGIT, LOGIT),
    }
    found = found_in_image(outputs, scale, np.array([height, width]))
    np.testing.assert_allclose(found.boxes, boxes[inside])
    for mask, bits in zip(found.masks, expected[inside], strict=True):
        assert np.mean(rle.decode(mask) != bits) < 1e-3
    outputs["classes"] = np.zeros(len(boxes), np.int64)
    cut = found_in_image(outputs, scale, np.array([height, width])).boxes
    np.testing.assert_allclose(cut, np.clip(boxes, 0, [width, height, width, height]))
    assert not inside.all()
