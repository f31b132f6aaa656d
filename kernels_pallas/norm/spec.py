"""The static facts of one normalisation, known before any array value is."""

import dataclasses

import jax.numpy as jnp
import numpy as np

KINDS = ("rms", "layer")
ACTIVATIONS = (None, "silu", "gelu")


@dataclasses.dataclass(frozen=True)
class NormSpec:
    """Everything an implementation may look at to decide whether it can serve a call.

    Attributes:
        rows: Vectors to normalise: the product of all axes but the last.
        width: Channels D, at least 1.
        dtype: Type of the maps.
        kind: One of KINDS.
        epsilon: Added to the variance, positive.
        activation: One of ACTIVATIONS.
        residual: A branch is added before.
        images: Length of the first axis, along which `keep` is; 0 if there is no `keep`.
    """

    rows: int
    width: int
    dtype: np.dtype
    kind: str
    epsilon: float
    activation: str | None = None
    residual: bool = False
    images: int = 0

    @property
    def wide(self) -> np.dtype:
        """Type of statistics and of everything before the rounding of results."""
        return np.dtype(jnp.promote_types(self.dtype, jnp.float32))
