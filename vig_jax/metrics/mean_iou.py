"""Metrics of semantic segmentation from a confusion matrix, as mmsegmentation defines them.

Source: mmseg, evaluation/metrics/iou_metric.py. All values are fractions.
"""

import dataclasses

import numpy as np
from jaxtyping import Float64, Integer


@dataclasses.dataclass(frozen=True)
class ClassScores:
    """Scores of each class; NaN where a class has no pixel that the score is relative to.

    Attributes:
        iou: pixels that are the class and predicted as it, over those that are either.
        accuracy: the same, over those that are the class; also known as recall.
        dice: twice the same, over the sum of those that are the class and those predicted as it.
        precision: the same, over those predicted as the class.
        f_score: the harmonic mean of precision and accuracy; NaN if either is, or both are 0.
    """

    iou: Float64[np.ndarray, "K"]
    accuracy: Float64[np.ndarray, "K"]
    dice: Float64[np.ndarray, "K"]
    precision: Float64[np.ndarray, "K"]
    f_score: Float64[np.ndarray, "K"]

    @classmethod
    def of(cls, confusion: Integer[np.ndarray, "K K"]) -> "ClassScores":
        """Returns the scores from pixel counts by true class (row) and predicted class."""
        both = np.diag(confusion).astype(np.float64)
        true = confusion.sum(axis=1, dtype=np.float64)
        predicted = confusion.sum(axis=0, dtype=np.float64)
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
            accuracy, precision = both / true, both / predicted
            return cls(
                iou=both / (true + predicted - both),
                accuracy=accuracy,
                dice=2 * both / (true + predicted),
                precision=precision,
                f_score=2 * precision * accuracy / (precision + accuracy),
            )


def summary(confusion: Integer[np.ndarray, "K K"]) -> dict[str, float]:
    """Returns `miou`, `macc` and `aacc` from pixel counts by true class (row) and predicted class.

    mIoU and mAcc are means over the classes whose value is not NaN: a class that is predicted but
    never true counts 0 in mIoU and does not count in mAcc. aAcc is the share of all labelled pixels
    whose class is predicted. All are NaN if no pixel has a label.
    """
    scores = ClassScores.of(confusion)
    labelled = confusion.sum(dtype=np.float64)
    return {
        "miou": mean_of_known(scores.iou),
        "macc": mean_of_known(scores.accuracy),
        "aacc": float(np.trace(confusion) / labelled) if labelled else float("nan"),
    }


def mean_of_known(values: Float64[np.ndarray, "K"]) -> float:
    """Returns the mean of the values that are not NaN; NaN if all are."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")
