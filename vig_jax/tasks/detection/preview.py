"""A contact sheet of the first training batch: images with their boxes and masks."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32, UInt8
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vig_jax.figures import drawable, save_figure
from vig_jax.ops.paste import paste
from vig_jax.tasks.detection.task import Detection
from vig_jax.tasks.protocol import Batch

_COLUMNS = 4
_MOST = 8
_OPACITY = 0.45  # of masks


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
        class_names: one per label; labels beyond them are shown as numbers.
        palette: colour of each class, [K, 3] uint8 values.
    """

    task: Detection
    class_names: Sequence[str]
    palette: tuple[tuple[int, int, int], ...]

    def inputs(self, batch: Batch, key: jax.Array, rows: np.ndarray) -> PreviewArrays:
        """Returns the pixels and the objects of the given rows."""
        rows = rows[:_MOST]
        images, data = self.task.training_inputs(batch)[rows], self.task.data
        bright = images * jnp.asarray(data.std) + jnp.asarray(data.mean)
        pixels = jnp.round(255 * jnp.clip(bright, 0, 1)).astype(jnp.uint8)
        boxes, labels, valid = (batch[name][rows] for name in ("boxes", "labels", "valid"))
        masks = batch["masks"][rows] if self.task.model.masks else None
        return PreviewArrays(pixels, boxes, labels, valid, masks)

    def draw(self, arrays: PreviewArrays, path: Path) -> None:
        """Writes the images with boxes, class names and masks."""
        count = len(arrays.pixels)
        columns = min(_COLUMNS, count)
        rows = -(-count // columns)
        figure = Figure(figsize=(3.0 * columns, 3.0 * rows + 0.5), layout="constrained")
        figure.suptitle("First batch as the model sees it, with its objects", fontsize=10)
        for number in range(count):
            axes = figure.add_subplot(rows, columns, number + 1)
            axes.imshow(self._with_masks(arrays, number), interpolation="nearest")
            axes.set_axis_off()
            for box, label in self._objects(arrays, number):
                left, top, right, bottom = box
                color = np.array(self._color(label)) / 255
                size = right - left, bottom - top
                outline = Rectangle((left - 0.5, top - 0.5), *size, fill=False, edgecolor=color)
                axes.add_patch(outline)
                axes.text(
                    left, top - 1.5, self._name(label), fontsize=6, color="white", parse_math=False,
                    bbox={"facecolor": color, "edgecolor": "none", "pad": 0.8},
                )  # fmt: skip
        save_figure(figure, path)

    def _objects(self, arrays: PreviewArrays, number: int) -> list[tuple[list[float], int]]:
        valid = np.asarray(arrays.valid[number])
        boxes, labels = (np.asarray(x[number])[valid] for x in (arrays.boxes, arrays.labels))
        return list(zip(boxes.tolist(), labels.tolist(), strict=True))

    def _with_masks(self, arrays: PreviewArrays, number: int) -> np.ndarray:
        """Returns an image with the masks of its objects in their colours."""
        pixels = np.array(arrays.pixels[number])
        if arrays.masks is None:
            return pixels
        masks = np.asarray(arrays.masks[number])[np.asarray(arrays.valid[number])]
        for (box, label), mask in zip(self._objects(arrays, number), masks, strict=True):
            inside = paste(mask / 255, np.array(box), *pixels.shape[:2]) >= 0.5
            color = np.array(self._color(label))
            pixels[inside] = (1 - _OPACITY) * pixels[inside] + _OPACITY * color
        return pixels

    def _color(self, label: int) -> tuple[int, int, int]:
        return self.palette[label % len(self.palette)]

    def _name(self, label: int) -> str:
        names = self.class_names
        return drawable(names[label], 14) if label < len(names) else f"class {label}"
