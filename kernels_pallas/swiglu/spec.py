"""The static facts of one call."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from ..core.types import Dim


@dataclasses.dataclass(frozen=True)
class SwigluSpec:
    """The static facts of one call.

    Attributes:
        rows: Rows N of the input, all leading axes together.
        width: Width I of the output.
        dtype: Type of input and output.
    """

    rows: Dim
    width: int
    dtype: np.dtype

    @property
    def compute_dtype(self) -> np.dtype:
        """Returns the type to compute in: float64 for float64 inputs, else float32."""
        return np.dtype(jnp.float64 if self.dtype == jnp.float64 else jnp.float32)
