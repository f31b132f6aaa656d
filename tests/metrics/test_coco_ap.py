import numpy as np
import pytest

from tests import coco_case, golden_det
from vig_jax.data.dataset import GroundTruth
from vig_jax.errors import DataSetError
from vig_jax.metrics.coco_ap import average_precision
from vig_jax.metrics.coco_matching import Found, match
from vig_jax.ops import rle

SCENARIOS = golden_det.facts("coco_eval")["scenarios"]


def scores_of(truths, found, kind, classes):
    images = [match(truth, f, kind) for truth, f in zip(truths, found, strict=True)]
    return average_precision(images, classes)


@pytest.mark.parametrize("kind", ["box", "mask"])
@pytest.mark.parametrize("case", SCENARIOS, ids=lambda case: case["name"])
def test_golden(case, kind):
    dataset = case["ground_truth"]
    truths = coco_case.truths(dataset)
    found = [coco_case.detections(dataset, case["detections"], t.image_id) for t in truths]
    scores = scores_of(truths, found, kind, len(dataset["categories"]))
    name = {"box": "bbox", "mask": "segm"}[kind]
    np.testing.assert_allclose(list(scores.summary().values()), case[name], rtol=0, atol=1e-9)
    expected = case[f"{name}_ap_per_category"]
    np.testing.assert_allclose(scores.class_ap(), expected, rtol=0, atol=1e-9)


def random_set(images=30, classes=4):
    """Returns objects and detections of whole numbers: IoUs and scores are often equal."""
    rng = np.random.default_rng(3)
    truths, found = [], []
    for image_id in rng.permutation(images).tolist():
        side = 200
        many = rng.integers(0, 9)
        boxes = random_boxes(rng, many, side)
        masks = tuple(mask_of(box, side) for box in boxes)
        labels = rng.integers(0, classes, many).astype(np.int32)
        truths.append(
            GroundTruth(
                image_id=image_id,
                size=(side, side),
                ids=np.arange(many) + 1 + 100 * image_id,
                boxes=boxes,
                labels=labels,
                areas=np.array([rle.area(mask) for mask in masks], np.float64),
                crowd=rng.random(many) < 0.2,
                masks=masks,
            )
        )
        near = np.repeat(boxes, 4, axis=0) + rng.integers(-3, 4, (4 * many, 4))
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2] + 1)
        near = np.clip(np.concatenate([near, random_boxes(rng, 5, side)]), 0, side)
        found.append(
            Found(
                boxes=near,
                scores=rng.integers(1, 9, len(near)) / 8,
                labels=np.concatenate([np.repeat(labels, 4), rng.integers(0, classes, 5)]).astype(
                    np.int32
                ),
                masks=tuple(mask_of(box, side) for box in near),
            )
        )
    return truths, found


def random_boxes(rng, many, side):
    low = rng.integers(0, side - 20, (many, 2))
    sides = np.exp(rng.uniform(np.log(8), np.log(140), (many, 2))).astype(np.int64)
    return np.concatenate([low, np.minimum(low + sides, side)], axis=1).astype(np.float64)


def mask_of(box, side):
    mask = np.zeros((side, side), bool)
    x1, y1, x2, y2 = box.astype(int)
    mask[y1:y2, x1:x2] = True
    mask[y1, x1] = False
    return rle.encode(mask)


@pytest.mark.parametrize("kind", ["box", "mask"])
def test_pycocotools_agrees(kind, capsys):
    coco = pytest.importorskip("pycocotools.coco")
    cocoeval = pytest.importorskip("pycocotools.cocoeval")
    classes = 4
    truths, found = random_set(classes=classes)
    dataset = coco.COCO()
    dataset.dataset = {
        "images": [{"id": t.image_id, "height": 200, "width": 200} for t in truths],
        "categories": [{"id": label} for label in range(classes)],
        "annotations": [row for truth in truths for row in annotations(truth)],
    }
    dataset.createIndex()
    rows = [row for t, f in zip(truths, found, strict=True) for row in results(t, f, kind)]
    judge = cocoeval.COCOeval(dataset, dataset.loadRes(rows), {"box": "bbox", "mask": "segm"}[kind])
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    scores = scores_of(truths, found, kind, classes)
    assert list(scores.summary().values()) == pytest.approx(judge.stats.tolist(), abs=1e-12)
    np.testing.assert_allclose(scores.precision, judge.eval["precision"][..., -1], atol=1e-12)
    np.testing.assert_allclose(scores.recall[..., 2], judge.eval["recall"][..., -1], atol=1e-12)
    assert 0.1 < scores.summary()["ap"] < 0.9


def xywh(box):
    return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]


def as_coco(mask):
    return {"size": [mask.height, mask.width], "counts": rle.to_string(mask)}


def annotations(truth):
    for i, mask in enumerate(truth.masks):
        yield {
            "id": int(truth.ids[i]),
            "image_id": truth.image_id,
            "category_id": int(truth.labels[i]),
            "bbox": xywh(truth.boxes[i]),
            "area": float(truth.areas[i]),
            "iscrowd": int(truth.crowd[i]),
            "segmentation": as_coco(mask),
        }


def results(truth, found, kind):
    for i, mask in enumerate(found.masks):
        place = {"bbox": xywh(found.boxes[i])} if kind == "box" else {"segmentation": as_coco(mask)}
        yield {
            "image_id": truth.image_id,
            "category_id": int(found.labels[i]),
            "score": float(found.scores[i]),
            **place,
        }


def test_a_data_set_without_masks():
    truths, found = random_set(images=2)
    with pytest.raises(DataSetError, match=r"has no masks .*config.task.masks=False"):
        match(truths[0]._replace(masks=None), found[0], "mask")
