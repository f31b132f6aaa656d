"""The static facts of one call."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ..core.types import Dim


@dataclasses.dataclass(frozen=True)
class DepthwiseConvSpec:
    """The static facts of one call.

    Attributes:
        batch: Images B.
        height: Rows h of a map, at least 1.
        width: Columns w of a map, at least 1.
        channels: Channels D, at least 1.
        dtype: Type of the maps, the kernel and the result.
        activation: "silu" to apply it to the sums, or None.
    """

    batch: Dim
    height: int
    width: int
    channels: int
    dtype: np.dtype
    activation: str | None = None

    @property
    def wide_dtype(self) -> np.dtype:
        """Returns the type of sums and activations: float64 for float64 inputs, else float32."""
        return np.dtype(jnp.float64 if self.dtype == jnp.float64 else jnp.float32)
