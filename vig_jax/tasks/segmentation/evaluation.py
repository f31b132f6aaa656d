"""Mean IoU of a data set by sliding windows or whole images, and its worst images."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, UInt8

from vig_jax.config import DataConfig
from vig_jax.config.tasks import SegmentationConfig
from vig_jax.data.preprocess.masks import IGNORED
from vig_jax.errors import DataSetError
from vig_jax.layers.pixels import normalise
from vig_jax.metrics.mean_iou import summary
from vig_jax.tasks.protocol import Batch, BatchSpec, HostBatch, PredictStep, Variables
from vig_jax.tasks.segmentation.label_maps import Inference, LabelMaps, confusion_counts
from vig_jax.tasks.segmentation.results import SegmentationResults, WorstImage, worst_of
from vig_jax.tasks.segmentation.thumbnails import (
    thumbnail_of_image,
    thumbnail_of_labels,
    thumbnail_on_device,
)

PRIMARY_METRIC = "miou"


@dataclasses.dataclass(frozen=True)
class SegmentationState:
    """The sums of a pass so far.

    Attributes:
        confusion: number of pixels by true class (row) and predicted class, int64 [K, K].
        images: their number.
        finite: whether all logits were.
        worst: the images with the lowest mean IoU, lowest first.
    """

    confusion: np.ndarray
    images: int = 0
    finite: bool = True
    worst: tuple[WorstImage, ...] = ()


@dataclasses.dataclass(frozen=True)
class SegmentationEvaluation:
    """mIoU, mAcc and aAcc; see `vig_jax.tasks.protocol.Evaluation`.

    Attributes:
        model: gives logits [B, h, w, K].
        num_classes: K.
        data: side of the windows and normalisation.
        settings: windows or whole images, scales, flips.
        class_names: one per class; the others are shown as numbers.
        palette: red, green and blue of each class.
    """

    model: nn.Module
    num_classes: int
    data: DataConfig
    settings: SegmentationConfig
    class_names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()
    primary_metric: str = PRIMARY_METRIC
    per_example = True

    @property
    def inference(self) -> Inference:
        """The way from images to windows."""
        return inference_of(self.settings, self.data)

    @property
    def batch_spec(self) -> BatchSpec:
        """Canvases with images, their sizes, masks, and the sizes of the original images.

        The canvases and the mask are those of an image of one window: their height and width depend
        on the bucket, see `vig_jax.data.preprocess.segmentation`.
        """
        side = self.data.image_size
        size = jax.ShapeDtypeStruct((2,), np.int32)
        spec = {"original": size, "mask": jax.ShapeDtypeStruct((side, side), np.uint8)}
        for view in self.inference.views:
            spec |= {view.image: jax.ShapeDtypeStruct((side, side, 3), np.uint8), view.size: size}
        return spec

    def predict(self, variables: Variables, batch: Batch) -> dict[str, jax.Array]:
        """Returns `confusion` int32 [B, K, K], `finite` [B], and thumbnails `labels`.

        `confusion` has the number of pixels by true class (row) and predicted class. `finite` is
        false where a logit is not finite. The thumbnails are those of the label maps.
        """
        outputs: dict[str, jax.Array] = self._label_maps(variables, batch, _map_shape(batch))
        return outputs

    def predict_step(self, mesh: Mesh) -> PredictStep:
        """Returns `predict` as several programs, of which one has the model."""
        run = self._label_maps.compiled(mesh)
        return lambda variables, batch: run(variables, batch, _map_shape(batch))

    @property
    def _label_maps(self) -> LabelMaps:
        logits_of = functools.partial(window_logits, self.model, self.data)
        return LabelMaps(logits_of, self.inference, self._outputs, ("mask",))

    def _outputs(
        self, labels: UInt8[Array, "H W"], row: Mapping[str, Array]
    ) -> dict[str, jax.Array]:
        return {
            "confusion": confusion_counts(labels, row["mask"], self.num_classes),
            "finite": jnp.all(labels != IGNORED),
            "labels": thumbnail_on_device(labels, row["original"]),
        }

    def init(self) -> SegmentationState:
        """Returns the state of no images."""
        return SegmentationState(np.zeros((self.num_classes, self.num_classes), np.int64))

    def update(
        self, state: SegmentationState, outputs: Mapping[str, np.ndarray], batch: HostBatch
    ) -> SegmentationState:
        """Returns the state with the images of one more batch whose weight is not 0."""
        rows = np.flatnonzero(batch["weight"] > 0).tolist()
        counts = outputs["confusion"].astype(np.int64)
        worst = state.worst
        for row in rows:
            found = WorstImage.of(int(batch["index"][row]), counts[row])
            if found and found in worst_of([*worst, found]):
                worst = worst_of([*worst, self._with_thumbnails(found, outputs, batch, row)])
        return SegmentationState(
            confusion=state.confusion + counts[rows].sum(axis=0),
            images=state.images + len(rows),
            finite=state.finite and bool(outputs["finite"][rows].all()),
            worst=worst,
        )

    def _with_thumbnails(
        self,
        found: WorstImage,
        outputs: Mapping[str, np.ndarray],
        batch: HostBatch,
        row: int,
    ) -> WorstImage:
        """Returns a bad image with small copies of the image, the truth and the prediction."""
        views = [view for view in self.inference.views if not view.flipped]
        nearest = min(range(len(views)), key=lambda i: abs(self.settings.eval_scales[i] - 1))
        height, width = batch["original"][row].tolist()
        tall, wide = batch[views[nearest].size][row].tolist()
        truth = thumbnail_of_labels(batch["mask"][row, :height, :width])
        image = batch[views[nearest].image][row, :tall, :wide]
        predicted = outputs["labels"][row, : truth.shape[0], : truth.shape[1]]
        return dataclasses.replace(
            found,
            image=thumbnail_of_image(image, (height, width)),
            truth=truth,
            predicted=predicted.copy(),
        )

    def merge(self, states: Sequence[SegmentationState]) -> SegmentationState:
        """Returns the state over the images of all processes."""
        return SegmentationState(
            confusion=np.sum([state.confusion for state in states], axis=0),
            images=sum(state.images for state in states),
            finite=all(state.finite for state in states),
            worst=worst_of([image for state in states for image in state.worst]),
        )

    def compute(self, state: SegmentationState) -> dict[str, float]:
        """Returns `miou`, `macc` and `aacc` as fractions, see `vig_jax.metrics.mean_iou.summary`.

        All are NaN if a logit was not finite.

        Raises:
            DataSetError: nothing was evaluated, or no pixel has a label.
        """
        if not state.images:
            raise DataSetError("none of the images to evaluate can be decoded")
        if not state.finite:
            return dict.fromkeys(("miou", "macc", "aacc"), float("nan"))
        if not state.confusion.sum():
            raise DataSetError(
                f"none of the pixels of {state.images} images has a label: all masks are ignored"
            )
        return summary(state.confusion)

    def details(self, state: SegmentationState, name_of: Callable[[int], str]) -> dict[str, Any]:
        """Returns `classes`, see `SegmentationResults.rows`, and the names of the worst images."""
        worst = [
            {"image": name_of(image.index), "miou": image.iou, "aacc": image.accuracy}
            for image in state.worst
        ]
        return {"classes": self._results(state, "").rows(), "worst_images": worst}

    def save(self, state: SegmentationState, folder: Path, description: str) -> None:
        """Writes the pixel counts and the worst images."""
        self._results(state, description).save(folder)

    def _results(self, state: SegmentationState, description: str) -> SegmentationResults:
        names = self.class_names
        unnamed = tuple(f"class {label}" for label in range(len(names), self.num_classes))
        return SegmentationResults(
            confusion=state.confusion,
            class_names=(*names, *unnamed),
            palette=np.array(self.palette, np.uint8).reshape(-1, 3),
            worst=state.worst,
            description=description,
        )


def _map_shape(batch: Batch) -> tuple[int, int]:
    _, height, width = batch["mask"].shape
    return height, width


def window_logits(
    model: nn.Module, data: DataConfig, variables: Variables, windows: UInt8[Array, "B H W 3"]
) -> Float[Array, "B h w K"]:
    """Returns the logits of normalised windows."""
    logits: Any = model.apply(variables, normalise(windows, data.mean, data.std))
    return logits


def inference_of(settings: SegmentationConfig, data: DataConfig) -> Inference:
    """Returns how the settings cut images into windows."""
    slides = settings.eval_mode == "slide"
    return Inference(
        crop=(data.image_size, data.image_size) if slides else None,
        stride=(settings.eval_stride, settings.eval_stride),
        scales=len(settings.eval_scales),
        flip=settings.eval_flip,
    )
