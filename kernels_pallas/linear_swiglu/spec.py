"""The static facts of one call, and the checks of its arrays."""

import dataclasses
import math

import jax
import numpy as np
from jaxtyping import Array

from ..core.types import Dim
from ..swiglu.spec import SwigluSpec


@dataclasses.dataclass(frozen=True)
class LinearSwigluSpec:
    """The static facts of one call.

    Attributes:
        rows: Rows N of the input, all leading axes together.
        features: Width D of the input.
        width: Width I of the output.
        dtype: Type of input, kernel and output.
    """

    rows: Dim
    features: int
    width: int
    dtype: np.dtype

    @property
    def compute_dtype(self) -> np.dtype:
        """Returns the type of sums: float64 for float64 inputs, else float32."""
        return self.swiglu.compute_dtype

    @property
    def dot_precision(self) -> jax.lax.Precision:
        """Returns the precision of products: no tf32 or bfloat16 passes for float32 inputs."""
        narrow = self.dtype.itemsize < 4
        return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST

    @property
    def swiglu(self) -> SwigluSpec:
        """Returns the call of the gate alone."""
        return SwigluSpec(self.rows, self.width, self.dtype)


def checked_spec(x: Array, kernel: Array) -> LinearSwigluSpec:
    """Makes the spec of a call from its arrays.

    Raises:
        TypeError: The types of the arrays differ.
        ValueError: The shapes do not fit together.
    """
    if kernel.dtype != x.dtype:
        raise TypeError(f"kernel must have the type of x, {x.dtype}, got {kernel.dtype}: cast")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last axis of at least one feature, got shape {x.shape}")
    if kernel.ndim != 2 or kernel.shape[0] != x.shape[-1]:
        raise ValueError(
            f"kernel must be [D, 2I] for the D = {x.shape[-1]} features of x, got {kernel.shape}"
        )
    if kernel.shape[1] == 0 or kernel.shape[1] % 2:
        raise ValueError(
            f"kernel must be [D, gate | up] with an even number of columns, got {kernel.shape}"
        )
    return LinearSwigluSpec(
        rows=math.prod(x.shape[:-1]),
        features=x.shape[-1],
        width=kernel.shape[1] // 2,
        dtype=x.dtype,
    )
