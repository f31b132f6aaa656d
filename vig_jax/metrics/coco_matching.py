"""Matches the detections of an image with its objects, by COCO's rules. NumPy only.

Source: pycocotools, cocoeval.py, `evaluateImg`. A detection is tested for every pair of an area
range and an IoU threshold. These pairs are the bits of an integer: bit `range * 10 + threshold`.
"""

import itertools
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int32, Int64

from vig_jax.data.dataset import GroundTruth
from vig_jax.errors import DataSetError
from vig_jax.ops import rle
from vig_jax.ops.rle import Rle

Kind = Literal["box", "mask"]

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
AREA_RANGES = {  # square pixels, both ends included
    "all": (0.0, 1e10),
    "small": (0.0, 32.0**2),
    "medium": (32.0**2, 96.0**2),
    "large": (96.0**2, 1e10),
}
MOST_DETECTIONS = 100
"""Detections of a class in an image that count, those with the highest scores."""

_T = len(IOU_THRESHOLDS)
_ALL_THRESHOLDS = (1 << _T) - 1
_LEAST_IOU = float(IOU_THRESHOLDS[0])


class Found(NamedTuple):
    """The detections in an image, in pixels of the stored image.

    Attributes:
        boxes: x1, y1, x2, y2.
        scores: in any order.
        labels: class, from 0.
        masks: of the size of the image; None: there are boxes alone.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    labels: Int32[np.ndarray, "n"]
    masks: tuple[Rle, ...] | None


class Matches(NamedTuple):
    """The detections of an image, by falling score, and its objects.

    Attributes:
        image_id: number of the image; images are compared in the order of their numbers.
        scores: of the detections.
        labels: class of each detection.
        ranks: number of detections of the same class with a higher score.
        hits: bits of the area ranges and thresholds for which an object is found.
        ignored: bits for which the detection counts neither as right nor as wrong.
        truth_labels: class of each object.
        truth_counts: in which area ranges an object counts.
    """

    image_id: int
    scores: Float64[np.ndarray, "n"]
    labels: Int32[np.ndarray, "n"]
    ranks: Int64[np.ndarray, "n"]
    hits: Int64[np.ndarray, "n"]
    ignored: Int64[np.ndarray, "n"]
    truth_labels: Int32[np.ndarray, "m"]
    truth_counts: Bool[np.ndarray, "m 4"]


def match(truth: GroundTruth, found: Found, kind: Kind) -> Matches:
    """Compares the detections of an image with its objects.

    Detections choose in the order of their scores. Each takes the free object of its class with the
    highest IoU, if that reaches the threshold. Objects that do not count, which are crowds and
    those outside of the area range, are the second choice, and the detection is then ignored. A
    crowd is never taken. A detection without an object is ignored outside of the area range.

    Args:
        truth: all objects of the image.
        found: the detections.
        kind: compare boxes or masks. Areas of detections are those of this kind.

    Raises:
        DataSetError: masks are to be compared, but the data set has none.
    """
    order = np.argsort(-found.scores, kind="stable")
    labels = found.labels[order]
    ranks = _ranks(labels)
    order, labels = order[ranks < MOST_DETECTIONS], labels[ranks < MOST_DETECTIONS]
    if kind == "box":
        boxes = found.boxes[order].astype(np.float64)
        areas = _areas(boxes)
        pairs = _box_pairs(boxes, labels, truth)
    else:
        if truth.masks is None:
            raise DataSetError(
                f"image {truth.image_id} has no masks to compare with: evaluate boxes alone "
                "(config.task.masks=False)"
            )
        assert found.masks is not None
        masks = [found.masks[i] for i in order]
        areas = np.array([rle.area(mask) for mask in masks], np.float64)
        pairs = _mask_pairs(masks, labels, truth)
    counts = _in_ranges(truth.areas) & ~truth.crowd[:, None]
    hits, ignored = _assign(pairs, _bits(~_in_ranges(areas)), _bits(~counts), truth.crowd.tolist())
    return Matches(
        image_id=truth.image_id,
        scores=found.scores[order].astype(np.float64),
        labels=labels,
        ranks=ranks[ranks < MOST_DETECTIONS],
        hits=hits,
        ignored=ignored,
        truth_labels=truth.labels,
        truth_counts=counts,
    )


class _Pairs(NamedTuple):
    """Detections and objects of the same class with an IoU of at least 0.5."""

    detections: np.ndarray
    objects: np.ndarray
    ious: np.ndarray


def _ranks(labels: np.ndarray) -> Int64[np.ndarray, "n"]:
    """Returns how often each label occurs before."""
    by_label = np.argsort(labels, kind="stable")
    ordered = labels[by_label]
    ranks = np.empty(len(labels), np.int64)
    ranks[by_label] = np.arange(len(labels)) - np.searchsorted(ordered, ordered)
    return ranks


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _in_ranges(areas: np.ndarray) -> Bool[np.ndarray, "n 4"]:
    low, high = np.array(list(AREA_RANGES.values())).T
    return (areas[:, None] >= low) & (areas[:, None] <= high)


def _bits(ranges: np.ndarray) -> list[int]:
    """Returns the bits of all thresholds of some area ranges, for each row."""
    weights = _ALL_THRESHOLDS << (_T * np.arange(len(AREA_RANGES)))
    bits: list[int] = (ranges @ weights).tolist()
    return bits


def _intersections(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    low = np.maximum(boxes[:, None, :2], others[:, :2])
    sides = np.maximum(np.minimum(boxes[:, None, 2:], others[:, 2:]) - low, 0)
    return sides[..., 0] * sides[..., 1]


def _shares(
    shared: np.ndarray, areas: np.ndarray, other_areas: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """Returns intersections over unions, or for crowds over the area of the detection."""
    union = areas[:, None] + np.where(crowd, shared, other_areas) - shared
    return np.divide(shared, union, out=np.zeros(shared.shape), where=shared > 0)


def _box_pairs(boxes: np.ndarray, labels: np.ndarray, truth: GroundTruth) -> _Pairs:
    shared = _intersections(boxes, truth.boxes)
    ious = _shares(shared, _areas(boxes), _areas(truth.boxes), truth.crowd)
    kept = (labels[:, None] == truth.labels) & (ious >= _LEAST_IOU)
    detections, objects = np.nonzero(kept)
    return _Pairs(detections, objects, ious[kept])


def _mask_pairs(masks: Sequence[Rle], labels: np.ndarray, truth: GroundTruth) -> _Pairs:
    """Returns the pairs of masks; only those whose boxes overlap enough are compared in full."""
    assert truth.masks is not None
    areas, other_areas = (
        np.array([rle.area(mask) for mask in some], np.float64) for some in (masks, truth.masks)
    )
    shared = _intersections(_bounds(masks), _bounds(truth.masks))
    most_shared = np.minimum(np.minimum(shared, areas[:, None]), other_areas)
    most = _shares(most_shared, areas, other_areas, truth.crowd)
    candidates = (labels[:, None] == truth.labels) & (most >= _LEAST_IOU)
    detections, objects = np.nonzero(candidates)
    ious = np.array(
        [
            rle.iou([masks[d]], [truth.masks[g]], [bool(truth.crowd[g])]).item()
            for d, g in zip(detections.tolist(), objects.tolist(), strict=True)
        ]
    )
    kept = ious >= _LEAST_IOU
    return _Pairs(detections[kept], objects[kept], ious[kept])


def _bounds(masks: Sequence[Rle]) -> np.ndarray:
    boxes = np.array([rle.bounding_box(mask) for mask in masks], np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _assign(
    pairs: _Pairs, outside: list[int], uncounted: list[int], crowd: list[bool]
) -> tuple[Int64[np.ndarray, "n"], Int64[np.ndarray, "n"]]:
    """Returns `hits` and `ignored` of `Matches`.

    Args:
        pairs: that may be matched.
        outside: bits of the area ranges that a detection is outside of.
        uncounted: bits of the area ranges for which an object does not count.
        crowd: whether an object is a crowd.
    """
    passed = np.searchsorted(np.minimum(IOU_THRESHOLDS, 1 - 1e-10), pairs.ious, side="right")
    every_range = sum(1 << (_T * i) for i in range(len(AREA_RANGES)))
    bits = ((1 << passed) - 1) * every_range
    # The best object first; of equal ones the last, as pycocotools does.
    order = np.lexsort((-pairs.objects, -pairs.ious, pairs.detections))
    columns = (x[order].tolist() for x in (pairs.detections, pairs.objects, bits))
    rows = zip(*columns, strict=True)
    hits, ignored = [0] * len(outside), list(outside)
    taken = [0] * len(uncounted)
    for detection, group in itertools.groupby(rows, key=lambda row: row[0]):
        choices = [(g, lanes) for _, g, lanes in group]
        hit = second = 0
        for g, lanes in choices:
            won = lanes & ~uncounted[g] & ~taken[g] & ~hit
            hit |= won
            taken[g] |= won
        for g, lanes in choices:
            won = lanes & uncounted[g] & ~hit
            if not crowd[g]:
                won &= ~taken[g]
                taken[g] |= won
            hit |= won
            second |= won
        hits[detection] = hit
        ignored[detection] = (outside[detection] & ~hit) | second
    return np.array(hits, np.int64), np.array(ignored, np.int64)
