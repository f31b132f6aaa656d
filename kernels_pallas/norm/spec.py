"""The static facts of one call."""

import dataclasses

import numpy as np

from ..core.types import Dim, float32_or_wider

KINDS = ("rms", "layer")
ACTIVATIONS = (None, "silu", "gelu")


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """The static facts of one call.

    Attributes:
        rows: Vectors to normalise: the product of all axes but the last.
        width: Channels D, at least 1.
        dtype: Type of the maps.
        kind: One of KINDS.
        epsilon: Added to the variance, positive.
        activation: One of ACTIVATIONS.
        residual: A branch is added before the normalisation.
        images: Length of the first axis, which `keep` has too; 0 if there is no `keep`.
    """

    rows: Dim
    width: int
    dtype: np.dtype
    kind: str
    epsilon: float
    activation: str | None = None
    residual: bool = False
    images: Dim = 0

    @property
    def wide(self) -> np.dtype:
        """Returns the type of statistics and of all else before results are rounded."""
        return float32_or_wider(self.dtype)
