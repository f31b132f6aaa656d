"""A contact sheet of the first training batch: images with their boxes and masks."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8

from vig_jax.figures import new_figure, save_figure
from vig_jax.ops.paste import paste
from vig_jax.tasks.detection.drawing import Objects, draw_objects
from vig_jax.tasks.detection.task import Detection
from vig_jax.tasks.protocol import Batch
from vig_jax.tasks.segmentation.drawing import Palette

_COLUMNS = 4
_MOST = 8
_INCHES = 3.0  # of an image
_POINTS = 72  # of an inch


class PreviewArrays(NamedTuple):
    """Images to draw, with their objects."""

    pixels: UInt8[Array | np.ndarray, "n H W 3"]
    boxes: Float32[Array | np.ndarray, "n G 4"]
    labels: Int32[Array | np.ndarray, "n G"]
    valid: Bool[Array | np.ndarray, "n G"]
    masks: UInt8[Array | np.ndarray, "n G h w"] | None


@dataclasses.dataclass(frozen=True)
class DetectionPreview:
    """Draws images as the model sees them; see `vig_jax.tasks.protocol.Preview`.

    Attributes:
        task: of the run.
        class_names: one per label.
        palette: colour of each class, [K, 3] uint8 values.
    """

    task: Detection
    class_names: tuple[str, ...]
    palette: Palette

    def inputs(self, batch: Batch, key: jax.Array, rows: np.ndarray) -> PreviewArrays:
        """Returns the pixels and the objects of the given rows."""
        rows = rows[:_MOST]
        images, data = self.task.training_inputs(batch, key)[rows], self.task.data
        bright = images * jnp.asarray(data.std) + jnp.asarray(data.mean)
        pixels = jnp.round(255 * jnp.clip(bright, 0, 1)).astype(jnp.uint8)
        boxes, labels, valid = (batch[name][rows] for name in ("boxes", "labels", "valid"))
        masks = batch["masks"][rows] if self.task.model.masks else None
        return PreviewArrays(pixels, boxes, labels, valid, masks)

    def draw(self, arrays: PreviewArrays, path: Path) -> None:
        """Writes the images with masks, boxes and class names."""
        count = len(arrays.pixels)
        columns = min(_COLUMNS, count)
        rows = -(-count // columns)
        figure = new_figure(_INCHES * columns, _INCHES * rows + 0.5)
        figure.suptitle("First batch as the model sees it, with its objects", fontsize=10)
        for number, image in enumerate(arrays.pixels):
            axes = figure.add_subplot(rows, columns, number + 1)
            pixels = np.asarray(image)
            draw_objects(
                axes, pixels, objects_of(arrays, number), self.class_names, self.palette,
                pixels=max(pixels.shape) / (_INCHES * _POINTS), scores=False,
            )  # fmt: skip
        save_figure(figure, path)


def objects_of(arrays: PreviewArrays, number: int) -> Objects:
    """Returns the objects of one of the images."""
    valid = np.asarray(arrays.valid[number])
    boxes = np.asarray(arrays.boxes[number], np.float64)[valid]
    masks = None
    if arrays.masks is not None:
        shape = arrays.pixels.shape[1:3]
        cut = np.asarray(arrays.masks[number])[valid] / 255
        masks = np.zeros((len(boxes), *shape), bool)
        for i, (mask, box) in enumerate(zip(cut, boxes, strict=True)):
            masks[i] = paste(mask, box, *shape) >= 0.5
    labels = np.asarray(arrays.labels[number])[valid]
    return Objects(boxes, np.ones(len(boxes)), labels, masks)
