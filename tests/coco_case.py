"""Data sets and detections in COCO's format as this project's objects, for tests."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vig_jax.data.dataset import GroundTruth
from vig_jax.metrics.coco_matching import Found
from vig_jax.ops import rle


def corners(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Returns x1, y1, x2, y2 of the field `bbox`."""
    boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def labels_of(rows: Sequence[Mapping[str, Any]], dataset: Mapping[str, Any]) -> np.ndarray:
    """Returns the numbers of the categories in the order of their ids."""
    ids = sorted(category["id"] for category in dataset["categories"])
    return np.array([ids.index(row["category_id"]) for row in rows], np.int32)


def truths(dataset: Mapping[str, Any]) -> list[GroundTruth]:
    """Returns the objects of all images of a file of annotations."""
    found = []
    for image in dataset["images"]:
        rows = [row for row in dataset["annotations"] if row["image_id"] == image["id"]]
        size = image["width"], image["height"]
        found.append(
            GroundTruth(
                image_id=image["id"],
                size=size,
                ids=np.array([row["id"] for row in rows], np.int64),
                boxes=corners(rows),
                labels=labels_of(rows, dataset),
                areas=np.array([row["area"] for row in rows], np.float64),
                crowd=np.array([row["iscrowd"] for row in rows], bool),
                masks=tuple(rle.from_coco(row["segmentation"], *size[::-1]) for row in rows),
            )
        )
    return found


def detections(
    dataset: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], image_id: int
) -> Found:
    """Returns the detections of one image among those of a file of results."""
    rows = [row for row in rows if row["image_id"] == image_id]
    masks = [row["segmentation"] for row in rows]
    return Found(
        boxes=corners(rows),
        scores=np.array([row["score"] for row in rows], np.float64),
        labels=labels_of(rows, dataset),
        masks=tuple(rle.from_string(mask["counts"], *mask["size"]) for mask in masks),
    )
