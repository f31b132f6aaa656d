"""COCO's average precision of boxes and masks over a data set, and its worst images."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from vig_jax.config import DataConfig, DetectionConfig
from vig_jax.data.dataset import Dataset, DetectionDataset
from vig_jax.errors import DataSetError
from vig_jax.files import to_json, write_text
from vig_jax.layers.pixels import normalise_parts
from vig_jax.metrics.coco_ap import CocoScores, average_precision
from vig_jax.metrics.coco_matching import Found, Kind, Matches, match
from vig_jax.tasks.detection.found import coco_rows, found_in_image
from vig_jax.tasks.detection.results import DetectionResults, WorstImage, worst_of
from vig_jax.tasks.protocol import Batch, BatchSpec, HostBatch, Variables

PRIMARY_METRIC = "box_ap"
METRICS = ("ap", "ap50", "ap75", "ap_s", "ap_m", "ap_l")
"""The metrics of each kind, named `box_ap` and so on."""
EXPORTED = {"box": "detections.bbox.json", "mask": "detections.segm.json"}
"""The files with all detections by kind, in the format of COCO's results."""


class ImageResult(NamedTuple):
    """The detections of one image and their comparison with the objects.

    Attributes:
        found: the detections in the stored image.
        matches: by kind, the detections and the objects that they find.
    """

    found: Found
    matches: dict[Kind, Matches]


@dataclasses.dataclass(frozen=True)
class DetectionState:
    """The images of a pass so far.

    Attributes:
        images: by number in the data set.
        finite: whether all boxes, scores and masks were.
        cut: number of images with more candidates than the detector compares.
        worst: the images with the lowest average precision, lowest first.
    """

    images: Mapping[int, ImageResult] = dataclasses.field(default_factory=dict)
    finite: bool = True
    cut: int = 0
    worst: tuple[WorstImage, ...] = ()


@dataclasses.dataclass(frozen=True)
class DetectionEvaluation:
    """COCO's metrics of boxes and masks; see `vig_jax.tasks.protocol.Evaluation`.

    Attributes:
        model: a detector; `apply(variables, images, sizes, method="detect")` gives what
            `vig_jax.models.detector.Detections` describes. Its attribute `candidates` is their
            limit.
        data: normalisation.
        settings: buckets, and whether masks are compared.
        class_names: of the classes.
        palette: red, green and blue of each class.
        category_ids: number of each class in COCO's format.
        dataset: has the ground truth; see `with_dataset`.
    """

    model: nn.Module
    data: DataConfig
    settings: DetectionConfig
    class_names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    category_ids: tuple[int, ...]
    dataset: DetectionDataset | None = dataclasses.field(default=None, compare=False)
    primary_metric: str = PRIMARY_METRIC
    per_example = True

    def with_dataset(self, dataset: Dataset) -> "DetectionEvaluation":
        """Returns the evaluation of a data set, with its numbers of categories.

        Raises:
            DataSetError: the data set has no boxes, or no object that counts, or boxes alone and
                masks are to be compared.
        """
        if not isinstance(dataset, DetectionDataset):
            raise DataSetError(
                f"{dataset.info.name} has no boxes of objects to evaluate with: name a data set "
                "for detection with config.data.source"
            )
        metadata = dataset.info.metadata
        if all(dataset.ground_truth(index).crowd.all() for index in range(len(dataset))):
            raise DataSetError(
                f"none of the {len(dataset)} images of {dataset.info.name} has an object that "
                "counts: annotate objects that are no crowds"
            )
        if self.settings.masks and not metadata.get("has_masks", True):
            raise DataSetError(
                f"{dataset.info.name} has boxes alone, and masks are to be compared: set "
                "config.task.masks=False, or annotate masks"
            )
        ids = tuple(metadata.get("category_ids", self.category_ids))
        return dataclasses.replace(self, dataset=dataset, category_ids=ids)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of results: boxes, and masks if the model has them."""
        return ("box", "mask") if self.settings.masks else ("box",)

    @property
    def batch_spec(self) -> BatchSpec:
        """Padded images uint8 [H, W, 3] of the first bucket, and their sizes int32 [2]."""
        return {
            "image": jax.ShapeDtypeStruct((*self.settings.buckets[0], 3), np.uint8),
            "size": jax.ShapeDtypeStruct((2,), np.int32),
        }

    def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """Returns `boxes`, `scores`, `classes`, `candidates`, and for models with masks `masks`."""
        images = normalise_parts(batch["image"], batch["size"], self.data.mean, self.data.std)
        found: Any = self.model.apply(variables, images, batch["size"], method="detect")
        names = ("boxes", "scores", "classes", "candidates")
        outputs = {name: getattr(found, name) for name in names}
        return outputs | ({"masks": found.masks} if self.settings.masks else {})

    def init(self) -> DetectionState:
        """Returns the state of no images."""
        return DetectionState()

    def update(
        self, state: DetectionState, outputs: Mapping[str, np.ndarray], batch: HostBatch
    ) -> DetectionState:
        """Returns the state with the images of one more batch whose weight is not 0."""
        assert self.dataset is not None
        rows = np.flatnonzero(batch["weight"] > 0)
        images, worst = dict(state.images), state.worst
        for row in rows.tolist():
            index = int(batch["index"][row])
            one = {name: values[row] for name, values in outputs.items() if name != "candidates"}
            found = found_in_image(one, batch["scale"][row], batch["original"][row])
            truth = self.dataset.ground_truth(index)
            matches = {kind: match(truth, found, kind) for kind in self.kinds}
            images[index] = ImageResult(found, matches)
            candidate = self._worst(index, matches[self.kinds[-1]])
            if candidate and candidate in worst_of([*worst, candidate]):
                height, width = batch["size"][row].tolist()
                pixels = batch["image"][row, :height, :width]
                worst = worst_of([*worst, candidate.with_drawing(pixels, truth, found)])
        return DetectionState(
            images=images,
            finite=state.finite and _all_finite(outputs, rows),
            cut=state.cut + int((outputs["candidates"][rows] > self.model.candidates).sum()),
            worst=worst,
        )

    def _worst(self, index: int, matches: Matches) -> WorstImage | None:
        """Returns the score of an image; None if no object of it counts."""
        objects = int(matches.truth_counts[:, 0].sum())
        if not objects:
            return None
        ap = average_precision([matches], len(self.class_names)).summary()["ap"]
        return WorstImage(index, ap, objects)

    def merge(self, states: Sequence[DetectionState]) -> DetectionState:
        """Returns the state over the images of all processes."""
        return DetectionState(
            images={index: image for state in states for index, image in state.images.items()},
            finite=all(state.finite for state in states),
            cut=sum(state.cut for state in states),
            worst=worst_of([image for state in states for image in state.worst]),
        )

    def compute(self, state: DetectionState) -> dict[str, float]:
        """Returns the metrics of COCO by kind, as fractions, e.g. `box_ap` and `mask_ap50`.

        `METRICS` lists them, and `CocoScores.summary` says what they are. Those of sizes that no
        object has are left out. All are NaN if an output of the model was not finite.

        Raises:
            DataSetError: nothing was evaluated, or there is no object.
        """
        if not state.images:
            raise DataSetError("none of the images to evaluate can be decoded")
        found: dict[str, float] = {}
        for kind, scores in self._scores(state).items():
            values = scores.summary()
            if values["ap"] < 0:
                raise DataSetError(
                    f"none of the {len(state.images)} images to evaluate has an object that counts:"
                    " annotate objects that are no crowds"
                )
            found |= {f"{kind}_{name}": values[name] for name in METRICS if values[name] >= 0}
        return found if state.finite else dict.fromkeys(found, float("nan"))

    def _scores(self, state: DetectionState) -> dict[Kind, CocoScores]:
        return {
            kind: average_precision(
                [image.matches[kind] for image in state.images.values()], len(self.class_names)
            )
            for kind in self.kinds
        }

    def details(self, state: DetectionState, name_of: Callable[[int], str]) -> dict[str, Any]:
        """Returns recalls, `classes`, `worst_images`, and the number of images cut short.

        `classes` is `DetectionResults.rows`. `images_with_candidates_left_out` have more pairs of a
        region and a class above the least score than the detector compares.
        """
        results = self._results(state, "")
        recalls = {
            f"{kind}_{name}": value if value >= 0 else float("nan")
            for kind, scores in results.scores.items()
            for name, value in scores.summary().items()
            if name.startswith("ar")
        }
        worst = [
            {"image": name_of(image.index), "ap": image.ap, "objects": image.objects}
            for image in state.worst
        ]
        return {
            **recalls,
            "images_with_candidates_left_out": state.cut,
            "classes": results.rows(),
            "worst_images": worst,
        }

    def save(self, state: DetectionState, folder: Path, description: str) -> None:
        """Writes precisions, recalls and the worst images."""
        self._results(state, description).save(folder)

    def _results(self, state: DetectionState, description: str) -> DetectionResults:
        return DetectionResults(
            scores=self._scores(state),
            class_names=self.class_names,
            palette=np.array(self.palette, np.uint8).reshape(-1, 3),
            worst=state.worst,
            description=description,
        )

    def export(self, state: DetectionState, folder: Path) -> list[Path]:
        """Writes all detections in the format of COCO's results, a file for each kind."""
        files = []
        for kind in self.kinds:
            rows = [_of_kind(row, kind) for row in self._rows(state)]
            write_text(folder / EXPORTED[kind], to_json(rows, indent=None))
            files.append(folder / EXPORTED[kind])
        return files

    def _rows(self, state: DetectionState) -> Iterator[dict[str, Any]]:
        for _, image in sorted(state.images.items()):
            image_id = image.matches["box"].image_id
            yield from coco_rows(image.found, image_id, self.category_ids)


def _of_kind(row: dict[str, Any], kind: Kind) -> dict[str, Any]:
    """Returns a row with a box or a mask alone: pycocotools takes areas from boxes if it can."""
    other = "segmentation" if kind == "box" else "bbox"
    return {name: value for name, value in row.items() if name != other}


def _all_finite(outputs: Mapping[str, np.ndarray], rows: np.ndarray) -> bool:
    names = [name for name in ("boxes", "scores", "masks") if name in outputs]
    return all(bool(np.isfinite(outputs[name][rows]).all()) for name in names)
