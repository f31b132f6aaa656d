"""The static facts of one call."""

import dataclasses

import jax
import numpy as np

from ..core.types import Dim, float32_or_wider


@dataclasses.dataclass(frozen=True)
class ResizeCrossEntropySpec:
    """The static facts of one call.

    Attributes:
        batch: Images B.
        rows: Rows h of the logits.
        columns: Columns w of the logits.
        height: Rows H of the labels.
        width: Columns W of the labels.
        classes: Logits per pixel K.
        ignore: Label of pixels that do not count.
        dtype: Type of the logits.
    """

    batch: Dim
    rows: Dim
    columns: int
    height: int
    width: int
    classes: int
    ignore: int
    dtype: np.dtype

    @property
    def wide(self) -> np.dtype:
        """Returns the type of all that is computed, and of the results."""
        return float32_or_wider(self.dtype)

    @property
    def factor(self) -> int:
        """Returns the whole factor by which both sides grow; 0 if there is none."""
        factor = self.height // self.rows
        sides = factor * self.rows, factor * self.columns
        return factor if sides == (self.height, self.width) else 0

    def labelled(self, labels: jax.Array) -> jax.Array:
        """Returns True for labels that are a class."""
        wide = labels.astype(np.int32)  # K may be more than a uint8 holds
        return (wide != self.ignore) & (wide < self.classes)
