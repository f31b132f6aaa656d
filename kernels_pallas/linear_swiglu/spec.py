"""The static facts of one call of a linear map with SwiGLU's gate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class LinearSwigluSpec:
    """Everything an implementation may look at to decide whether it can serve a call.

    Attributes:
        rows: Rows N of the input, all leading axes together.
        features: Width D of the input.
        width: Width I of the output.
        dtype: Type of input, kernel and output.
    """

    rows: int
    features: int
    width: int
    dtype: np.dtype

    @property
    def compute_dtype(self) -> np.dtype:
        """Type of sums: float64 for float64 inputs, else float32."""
        return np.dtype(jnp.float64 if self.dtype == jnp.float64 else jnp.float32)

    @property
    def dot_precision(self) -> jax.lax.Precision:
        """Precision of matrix products: no tf32 or bfloat16 passes for float32 inputs."""
        narrow = self.dtype.itemsize < 4
        return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST
