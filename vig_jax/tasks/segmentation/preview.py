"""A contact sheet of the first training batch: crops and their masks."""

import dataclasses
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from vig_jax.figures import new_figure, save_figure
from vig_jax.tasks.protocol import Batch
from vig_jax.tasks.segmentation.task import Segmentation

_COLUMNS = 4  # pairs of crop and mask
_MOST = 16


class PreviewArrays(NamedTuple):
    """Crops and masks to draw."""

    pixels: UInt8[Array | np.ndarray, "n S S 3"]
    masks: UInt8[Array | np.ndarray, "n S S"]


@dataclasses.dataclass(frozen=True)
class SegmentationPreview:
    """Draws crops as the model sees them; see `vig_jax.tasks.protocol.Preview`.

    Attributes:
        task: of the run.
        palette: colour of each class, [K, 3] uint8 values.
    """

    task: Segmentation
    palette: tuple[tuple[int, int, int], ...]

    def inputs(self, batch: Batch, key: jax.Array, rows: np.ndarray) -> PreviewArrays:
        """Returns the distorted pixels and the masks of the given rows."""
        images = self.task.training_inputs(batch, key)[rows[:_MOST]]
        data = self.task.data
        bright = images * jnp.asarray(data.std) + jnp.asarray(data.mean)
        pixels = jnp.round(255 * jnp.clip(bright, 0, 1)).astype(jnp.uint8)
        return PreviewArrays(pixels, batch["mask"][rows[:_MOST]])

    def draw(self, arrays: PreviewArrays, path: Path) -> None:
        """Writes pairs of crop and mask; ignored pixels are white."""
        colours = np.full((256, 3), 255, np.uint8)
        colours[: len(self.palette)] = self.palette
        columns = min(_COLUMNS, len(arrays.pixels))
        rows = -(-len(arrays.pixels) // columns)
        figure = new_figure(3.0 * columns, 1.6 * rows + 0.5)
        figure.suptitle("First batch as the model sees it, with its masks", fontsize=10)
        for number, (image, mask) in enumerate(zip(*arrays, strict=True), start=1):
            axes = figure.add_subplot(rows, columns, number)
            pair = np.concatenate([image, colours[np.asarray(mask)]], axis=1)
            axes.imshow(pair, interpolation="nearest")
            axes.set_axis_off()
        save_figure(figure, path)
