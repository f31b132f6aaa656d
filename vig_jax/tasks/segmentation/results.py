"""The detailed results of an evaluation: pixel counts and the worst images, in one file."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8

from vig_jax.metrics.mean_iou import ClassScores, mean_of_known
from vig_jax.metrics.result_files import load_arrays, save_arrays, texts

RESULTS_FILE = "segmentation.npz"
MOST_WORST = 16


@dataclasses.dataclass(frozen=True, eq=False)
class WorstImage:
    """One of the images with the lowest mean IoU.

    Attributes:
        index: its number in the data set.
        iou: mean over the classes that occur in it.
        accuracy: share of its labelled pixels whose class is predicted.
        image: a small copy; None before it is made, as the next two.
        truth: of the classes; 255 is ignored.
        predicted: of the predicted classes.
    """

    index: int
    iou: float
    accuracy: float
    image: UInt8[np.ndarray, "h w 3"] | None = None
    truth: UInt8[np.ndarray, "h w"] | None = None
    predicted: UInt8[np.ndarray, "h w"] | None = None

    @classmethod
    def of(cls, index: int, counts: Int64[np.ndarray, "K K"]) -> "WorstImage | None":
        """Returns the scores of an image from its pixel counts; None if no pixel has a label."""
        labelled = counts.sum()
        if not labelled:
            return None
        present = counts.sum(axis=1) > 0
        iou = mean_of_known(ClassScores.of(counts).iou[present])
        return cls(index, iou, float(np.trace(counts) / labelled))


def worst_of(images: Iterable[WorstImage]) -> tuple[WorstImage, ...]:
    """Returns the 16 with the lowest mean IoU, lowest first; equal ones by index."""
    return tuple(sorted(images, key=lambda image: (image.iou, image.index))[:MOST_WORST])


@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationResults:
    """Stored results of an evaluation, for figures and tables.

    Attributes:
        confusion: number of pixels by true class (row) and predicted class.
        class_names: one per class.
        palette: red, green and blue of each class.
        worst: the worst images, lowest mean IoU first.
        description: names the weights, for titles.
    """

    confusion: Int64[np.ndarray, "K K"]
    class_names: tuple[str, ...]
    palette: UInt8[np.ndarray, "K 3"]
    worst: tuple[WorstImage, ...]
    description: str

    def rows(self) -> list[dict[str, Any]]:
        """Returns the scores of each class, as fractions; NaN where there is none.

        Returns:
            Rows {class, iou, accuracy, precision, f_score, share}. `accuracy` is also known as
            recall, and `share` is that of the class among all labelled pixels.
        """
        scores = ClassScores.of(self.confusion)
        columns = {
            "iou": scores.iou,
            "accuracy": scores.accuracy,
            "precision": scores.precision,
            "f_score": scores.f_score,
            "share": self.confusion.sum(axis=1) / max(self.confusion.sum(), 1),
        }
        rows = zip(*(np.round(values, 6).tolist() for values in columns.values()), strict=True)
        return [
            {"class": name, **dict(zip(columns, values, strict=True))}
            for name, values in zip(self.class_names, rows, strict=True)
        ]

    def save(self, folder: Path) -> None:
        """Writes `segmentation.npz` in one step."""
        arrays: dict[str, Any] = {
            "confusion": self.confusion,
            "class_names": self.class_names,
            "palette": self.palette,
            "description": self.description,
            "worst": np.array([(w.index, w.iou, w.accuracy) for w in self.worst]).reshape(-1, 3),
        }
        for number, image in enumerate(self.worst):
            assert image.image is not None
            assert image.truth is not None
            assert image.predicted is not None
            arrays[f"worst_{number}"] = np.dstack((image.image, image.truth, image.predicted))
        save_arrays(folder / RESULTS_FILE, arrays)

    @classmethod
    def load(cls, folder: Path) -> "SegmentationResults":
        """Reads what `save` has written.

        Raises:
            FileNotFoundError: there is none.
            ReportError: the file is damaged.
        """
        return load_arrays(folder / RESULTS_FILE, cls._of)

    @classmethod
    def _of(cls, stored: Mapping[str, np.ndarray]) -> "SegmentationResults":
        worst = []
        for number, (index, iou, accuracy) in enumerate(stored["worst"].tolist()):
            small = stored[f"worst_{number}"]
            parts = small[..., :3], small[..., 3], small[..., 4]
            worst.append(WorstImage(int(index), iou, accuracy, *parts))
        return cls(
            confusion=stored["confusion"],
            class_names=texts(stored["class_names"]),
            palette=stored["palette"],
            worst=tuple(worst),
            description=str(stored["description"]),
        )
