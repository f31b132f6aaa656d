"""COCO's average precision of boxes and masks. NumPy only.

Source: pycocotools, cocoeval.py, `accumulate` and `summarize`. The numbers are the same.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Int64

from vig_jax.metrics.coco_matching import AREA_RANGES, IOU_THRESHOLDS, MOST_DETECTIONS, Matches

RECALLS = np.linspace(0, 1, 101)
_LIMITS = (1, 10, MOST_DETECTIONS)  # detections of a class in an image
_RANGES = tuple(AREA_RANGES)
_T = len(IOU_THRESHOLDS)


@dataclasses.dataclass(frozen=True, eq=False)
class CocoScores:
    """Precision and recall; -1 where a class has no object of the area range.

    Axes: T the IoU thresholds 0.5 to 0.95, R the recalls 0 to 1, K classes, A the area ranges, L
    the limits 1, 10 and 100 of the detections of a class in an image.

    Attributes:
        precision: the highest precision at a recall or above; 0 if the recall is not reached.
        recall: of all detections within the limit. Limits below 100 are filled for all areas only.
        objects: the number of objects that count.
    """

    precision: Float64[np.ndarray, "T R K A"]
    recall: Float64[np.ndarray, "T K A L"]
    objects: Int64[np.ndarray, "K A"]

    def summary(self) -> dict[str, float]:
        """Returns the twelve numbers of COCO by name; -1 if no object is of the area range.

        `ap`, `ap50` and `ap75` are means of the precision over classes, recalls, and all or one of
        the thresholds. `ap_s`, `ap_m` and `ap_l` are for objects below 32 x 32 pixels, up to
        96 x 96, and above. `ar1`, `ar10` and `ar100` are means of the recall for these
        limits, and `ar_s`, `ar_m` and `ar_l` for the area ranges.
        """
        found = {
            "ap": mean_of_given(self.precision[..., 0]),
            "ap50": mean_of_given(self.precision[0, ..., 0]),
            "ap75": mean_of_given(self.precision[5, ..., 0]),
        }
        for number, name in enumerate(_RANGES[1:], start=1):
            found[f"ap_{name[0]}"] = mean_of_given(self.precision[..., number])
        for number, limit in enumerate(_LIMITS):
            found[f"ar{limit}"] = mean_of_given(self.recall[:, :, 0, number])
        for number, name in enumerate(_RANGES[1:], start=1):
            found[f"ar_{name[0]}"] = mean_of_given(self.recall[:, :, number, -1])
        return found

    def class_ap(self, threshold: int | None = None) -> Float64[np.ndarray, "K"]:
        """Returns the average precision of each class; -1 for those without an object.

        Args:
            threshold: number of an IoU threshold; None: the mean over all.
        """
        kept = slice(None) if threshold is None else slice(threshold, threshold + 1)
        values = self.precision[kept, :, :, 0]
        return np.where(self.objects[:, 0] > 0, values.mean(axis=(0, 1)), -1.0)


def mean_of_given(values: np.ndarray) -> float:
    """Returns the mean of the values above -1; -1 if there is none."""
    given = values[values > -1]
    return float(given.mean()) if given.size else -1.0


def average_precision(images: Sequence[Matches], num_classes: int) -> CocoScores:
    """Returns precision and recall over all images.

    Args:
        images: all images of the data set, at least one; those without objects or detections are
            among them.
        num_classes: K.
    """
    images = sorted(images, key=lambda image: image.image_id)
    truth_labels = np.concatenate([image.truth_labels for image in images])
    truth_counts = np.concatenate([image.truth_counts for image in images])
    labels = np.concatenate([image.labels for image in images])
    # By class, then by falling score; equal scores in the order of the images.
    order = np.lexsort((-np.concatenate([image.scores for image in images]), labels))
    ranks, hits, ignored = (
        np.concatenate([getattr(image, name) for image in images])[order]
        for name in ("ranks", "hits", "ignored")
    )
    edges = np.searchsorted(labels[order], np.arange(num_classes + 1))
    shape = (_T, num_classes, len(_RANGES), len(_LIMITS))
    precision = np.full((_T, len(RECALLS), *shape[1:3]), -1.0)
    recall = np.full(shape, -1.0)
    objects = np.zeros(shape[1:3], np.int64)
    for label in range(num_classes):
        part = slice(edges[label], edges[label + 1])
        objects[label] = truth_counts[truth_labels == label].sum(axis=0)
        for area in np.flatnonzero(objects[label]):
            bits = area * _T + np.arange(_T)[:, None]
            counted = (ignored[part] >> bits) & 1 == 0
            right = ((hits[part] >> bits) & 1 == 1) & counted
            total = int(objects[label, area])
            precision[..., label, area] = _precision(right, counted, total)
            for number, limit in enumerate(_LIMITS):
                if area == 0 or limit == _LIMITS[-1]:
                    within = (right & (ranks[part] < limit)).sum(axis=1)
                    recall[:, label, area, number] = within / total
    return CocoScores(precision, recall, objects)


def _precision(right: np.ndarray, counted: np.ndarray, total: int) -> Float64[np.ndarray, "T R"]:
    """Returns the precision of one class at all recalls.

    Args:
        right: by threshold and detection, best first.
        counted: which detections are right or wrong.
        total: number of objects.
    """
    true = np.cumsum(right, axis=1, dtype=np.float64)
    all_counted = np.cumsum(counted, axis=1, dtype=np.float64)
    curve = true / (all_counted + np.spacing(1))
    curve = np.maximum.accumulate(curve[:, ::-1], axis=1)[:, ::-1]
    curve = np.pad(curve, ((0, 0), (0, 1)))
    places = [np.searchsorted(row / total, RECALLS, side="left") for row in true]
    return np.take_along_axis(curve, np.array(places), axis=1)
