"""The detailed results of an evaluation: precisions, recalls and the worst images, in one file."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vig_jax.data.dataset import GroundTruth
from vig_jax.metrics.coco_ap import CocoScores
from vig_jax.metrics.coco_matching import Found, Kind
from vig_jax.metrics.result_files import load_arrays, save_arrays, texts
from vig_jax.tasks.detection.drawing import Objects, objects_at, true_objects
from vig_jax.tasks.detection.found import best_of
from vig_jax.tasks.segmentation.thumbnails import thumbnail_of_image

RESULTS_FILE = "detection.npz"
MOST_WORST = 12
LEAST_SCORE = 0.3
"""The least score of a detection that is drawn."""
_MOST_DRAWN = 50  # objects of an image


@dataclasses.dataclass(frozen=True, eq=False)
class WorstImage:
    """One of the images with the lowest average precision.

    Attributes:
        index: its number in the data set.
        ap: average precision of the image alone, of masks if there are any, else of boxes. It is
            the mean over the classes of its objects.
        objects: number of objects that count.
        image: a small copy; None before it is made, as the next two.
        truth: the largest objects.
        found: the detections with the highest scores.
    """

    index: int
    ap: float
    objects: int
    image: UInt8[np.ndarray, "h w 3"] | None = None
    truth: Objects | None = None
    found: Objects | None = None

    def with_drawing(
        self, pixels: UInt8[np.ndarray, "H W 3"], truth: GroundTruth, found: Found
    ) -> "WorstImage":
        """Returns it with a small copy, the objects and the detections.

        Args:
            pixels: of the image at any size.
            truth: all objects in the stored image.
            found: all detections in the stored image.
        """
        size = truth.size[::-1]
        image = thumbnail_of_image(pixels, size)
        shape = image.shape[0], image.shape[1]
        largest = np.argsort(-truth.areas, kind="stable")[:_MOST_DRAWN]
        return dataclasses.replace(
            self,
            image=image,
            truth=true_objects(truth, largest, shape),
            found=objects_at(found, best_of(found, LEAST_SCORE)[:_MOST_DRAWN], size, shape),
        )


def worst_of(images: Iterable[WorstImage]) -> tuple[WorstImage, ...]:
    """Returns the 12 with the lowest average precision; of equal ones those with most objects."""
    order = sorted(images, key=lambda image: (image.ap, -image.objects, image.index))
    return tuple(order[:MOST_WORST])


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionResults:
    """Stored results of an evaluation, for figures and tables.

    Attributes:
        scores: by kind, "box" and perhaps "mask".
        class_names: one per class.
        palette: red, green and blue of each class.
        worst: the worst images, lowest average precision first.
        description: names the weights, for titles.
    """

    scores: Mapping[Kind, CocoScores]
    class_names: tuple[str, ...]
    palette: UInt8[np.ndarray, "K 3"]
    worst: tuple[WorstImage, ...]
    description: str

    def rows(self) -> list[dict[str, Any]]:
        """Returns the average precision of each class, as fractions; NaN where there is none.

        Returns:
            Rows {class, objects, box_ap, box_ap50, box_ap75}, and the same for masks. `objects` is
            the number of objects that count.
        """
        rows = [
            {"class": name, "objects": int(count)}
            for name, count in zip(self.class_names, self.scores["box"].objects[:, 0], strict=True)
        ]
        for kind, scores in self.scores.items():
            for name, threshold in (("ap", None), ("ap50", 0), ("ap75", 5)):
                values = np.round(scores.class_ap(threshold), 6).tolist()
                for row, value in zip(rows, values, strict=True):
                    row[f"{kind}_{name}"] = value if value >= 0 else float("nan")
        return rows

    def save(self, folder: Path) -> None:
        """Writes `detection.npz` in one step."""
        arrays: dict[str, Any] = {
            "class_names": self.class_names,
            "palette": self.palette,
            "description": self.description,
            "worst": np.array([(w.index, w.ap, w.objects) for w in self.worst]).reshape(-1, 3),
        }
        for kind, scores in self.scores.items():
            for field in dataclasses.fields(scores):
                arrays[f"{kind}_{field.name}"] = getattr(scores, field.name)
        for number, image in enumerate(self.worst):
            assert image.image is not None
            assert image.truth is not None
            assert image.found is not None
            arrays[f"image_{number}"] = image.image
            arrays |= _packed(image.truth, f"truth_{number}")
            arrays |= _packed(image.found, f"found_{number}")
        save_arrays(folder / RESULTS_FILE, arrays)

    @classmethod
    def load(cls, folder: Path) -> "DetectionResults":
        """Reads what `save` has written.

        Raises:
            FileNotFoundError: there is none.
            ReportError: the file is damaged.
        """
        return load_arrays(folder / RESULTS_FILE, cls._of)

    @classmethod
    def _of(cls, stored: Mapping[str, np.ndarray]) -> "DetectionResults":
        kinds: tuple[Kind, ...] = ("box", "mask") if "mask_recall" in stored else ("box",)
        names = [field.name for field in dataclasses.fields(CocoScores)]
        return cls(
            scores={
                kind: CocoScores(**{name: stored[f"{kind}_{name}"] for name in names})
                for kind in kinds
            },
            class_names=texts(stored["class_names"]),
            palette=stored["palette"],
            worst=tuple(
                WorstImage(
                    index=int(index),
                    ap=ap,
                    objects=int(objects),
                    image=stored[f"image_{number}"],
                    truth=_unpacked(stored, f"truth_{number}"),
                    found=_unpacked(stored, f"found_{number}"),
                )
                for number, (index, ap, objects) in enumerate(stored["worst"].tolist())
            ),
            description=str(stored["description"]),
        )


def _packed(objects: Objects, prefix: str) -> dict[str, np.ndarray]:
    arrays = {f"{prefix}_{name}": getattr(objects, name) for name in ("boxes", "scores", "labels")}
    if objects.masks is not None:
        arrays[f"{prefix}_masks"] = np.packbits(objects.masks, axis=-1)
        arrays[f"{prefix}_width"] = np.array(objects.masks.shape[-1])
    return arrays


def _unpacked(stored: Mapping[str, np.ndarray], prefix: str) -> Objects:
    masks = None
    if f"{prefix}_masks" in stored:
        count = int(stored[f"{prefix}_width"])
        masks = np.unpackbits(stored[f"{prefix}_masks"], axis=-1, count=count).astype(bool)
    boxes, scores, labels = (stored[f"{prefix}_{name}"] for name in ("boxes", "scores", "labels"))
    return Objects(boxes, scores, labels, masks)
