"""A contact sheet of the first training batch, with the targets."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vig_jax.config import DataConfig
from vig_jax.figures import drawable, new_figure, save_figure
from vig_jax.tasks.classification.task import Classification
from vig_jax.tasks.protocol import Batch

_COLUMNS = 8
_LEAST_SHARE = 0.05  # classes with a smaller share of the target are not named


class PreviewArrays(NamedTuple):
    """Images and targets to draw."""

    pixels: UInt8[Array | np.ndarray, "n S S 3"]
    targets: Float[Array | np.ndarray, "n classes"]


@dataclasses.dataclass(frozen=True)
class ClassificationPreview:
    """Draws images as the model sees them; see `vig_jax.tasks.protocol.Preview`.

    Attributes:
        task: of the run.
        class_names: one per label; labels beyond them are shown as numbers.
    """

    task: Classification
    class_names: Sequence[str]

    def inputs(self, batch: Batch, key: jax.Array, rows: np.ndarray) -> PreviewArrays:
        """Returns the augmented pixels and the targets of the given rows."""
        return self.rows_of(self.task.training_inputs(batch, key), rows)

    def rows_of(
        self,
        inputs: tuple[Float[Array, "B S S 3"], Float[Array, "B classes"]],
        rows: np.ndarray,
    ) -> PreviewArrays:
        """Returns pixels and targets of the given rows of `training_inputs`."""
        images, targets = inputs
        return PreviewArrays(to_pixels(images[rows], self.task.data), targets[rows])

    def draw(self, arrays: PreviewArrays, path: Path) -> None:
        """Writes the images as a contact sheet, with one or two classes above each."""
        pixels, targets = map(np.asarray, arrays)
        draw_sheet(list(pixels), list(targets), self.class_names, path)


def to_pixels(images: Float[Array, "*b 3"], data: DataConfig) -> UInt8[Array, "*b 3"]:
    """Returns the pixels of normalised images."""
    bright = images * jnp.asarray(data.std) + jnp.asarray(data.mean)
    return jnp.round(255 * jnp.clip(bright, 0, 1)).astype(jnp.uint8)


def draw_sheet(
    images: Sequence[UInt8[np.ndarray, "_ _ 3"]],
    targets: Sequence[Float[np.ndarray, "_"]],
    class_names: Sequence[str],
    path: Path,
) -> None:
    """Writes images as a contact sheet, with one or two classes of their targets above each."""
    columns = min(_COLUMNS, len(images))
    rows = -(-len(images) // columns)
    figure = new_figure(1.45 * columns + 0.2, 1.85 * rows + 0.5)
    figure.suptitle("First batch as the model sees it, with its targets", fontsize=10)
    for number, (image, target) in enumerate(zip(images, targets, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, number)
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(_caption(target, class_names), fontsize=7, parse_math=False)
    save_figure(figure, path)


def _caption(target: Float[np.ndarray, "classes"], class_names: Sequence[str]) -> str:
    """Returns the one or two largest classes of a target with their shares, one per line."""
    lines = []
    for label in np.argsort(-target, kind="stable")[:2].tolist():
        if target[label] >= _LEAST_SHARE:
            name = class_names[label] if label < len(class_names) else f"class {label}"
            lines.append(f"{drawable(name, 16)} {target[label]:.0%}")
    return "\n".join(lines)
