"""The instances of a map of objects, as data sets of detection and segmentation give them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32, UInt8

from vig_jax.data.dataset import Example, GroundTruth
from vig_jax.ops import rle


def instances(
    object_map: Int[np.ndarray, "h w"] | UInt8[np.ndarray, "h w"],
    objects: Int[np.ndarray, "n"],
    labels: Int[np.ndarray, "n"],
) -> dict[str, Float32[np.ndarray, "n 4"] | Int32[np.ndarray, "n"] | Bool[np.ndarray, "n h w"]]:
    """Returns the boxes, labels and masks of some objects of a map.

    Args:
        object_map: the number of the object that is visible at each pixel.
        objects: numbers of the objects to return, each with at least one pixel.
        labels: class of each of these objects.

    Returns:
        `boxes`: left, top, right and bottom of the visible part in pixels, where right and bottom
        are one past its last pixel. `labels`: int32. `instance_masks`: the visible part.
    """
    masks = object_map == objects.astype(object_map.dtype)[:, None, None]
    height, width = object_map.shape
    rows, columns = masks.any(axis=2), masks.any(axis=1)
    boxes = np.empty((len(objects), 4), np.float32)
    boxes[:, 0] = columns.argmax(axis=1)
    boxes[:, 1] = rows.argmax(axis=1)
    boxes[:, 2] = width - columns[:, ::-1].argmax(axis=1)
    boxes[:, 3] = height - rows[:, ::-1].argmax(axis=1)
    return {"boxes": boxes, "labels": labels.astype(np.int32), "instance_masks": masks}


def ground_truth(example: Example) -> GroundTruth:
    """Returns the instances of an example with `instance_masks` as the truth for evaluation.

    Args:
        example: as `vig_jax.data.dataset.DetectionDataset` describes it.
    """
    masks = example["instance_masks"]
    return GroundTruth(
        image_id=example["image_id"],
        size=example["size"],
        ids=np.arange(1, len(masks) + 1),
        boxes=example["boxes"].astype(np.float64),
        labels=example["labels"],
        areas=masks.sum(axis=(1, 2)).astype(np.float64),
        crowd=np.zeros(len(masks), bool),
        masks=tuple(rle.encode(mask) for mask in masks),
    )


def instance_metadata(
    names: Sequence[str], palette: Sequence[Sequence[int]], category_ids: Sequence[int]
) -> dict[str, Any]:
    """Returns what the metadata of a `DetectionDataset` with masks says about its labels.

    Args:
        names: of the labels.
        palette: red, green and blue of the labels, 0 to 255.
        category_ids: numbers of the labels in COCO's format.
    """
    return {
        "instance_names": tuple(names),
        "instance_palette": [list(color) for color in palette],
        "category_ids": list(category_ids),
        "has_masks": True,
    }
