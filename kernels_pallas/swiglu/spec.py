"""The static facts of one SwiGLU call, known before any array value is."""

import dataclasses

import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class SwigluSpec:
    """Everything an implementation may look at to decide whether it can serve a call.

    Attributes:
        rows: Rows N of the input, all leading axes together.
        width: Width I of the output.
        dtype: Type of input and output.
    """

    rows: int
    width: int
    dtype: np.dtype

    @property
    def compute_dtype(self) -> np.dtype:
        """Type inside, rounded once at the end: float64 for float64 inputs, else float32."""
        return np.dtype(jnp.float64 if self.dtype == jnp.float64 else jnp.float32)
