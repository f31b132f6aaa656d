"""Type aliases for what kernels work on."""

from typing import Any

import jax
import numpy as np

Ref = Any
"""A reference to an array in a GPU's memory: an argument of a kernel."""

Block = jax.Array
"""An array that a program of a kernel holds in registers."""

Index = tuple[Any, ...]
"""One integer or integer block for each axis of a reference; they broadcast."""

Mask = jax.Array | None
"""A boolean block; None is True everywhere."""

Dim = Any
"""A size of an array: an integer, or an expression where `jax.export` gets symbolic shapes."""

Tree = Any
"""A pytree of arrays, of their shapes and types, or of references."""


def float32_or_wider(dtype: Any) -> np.dtype:
    """Returns float64 for float64, else float32: the dtype of sums and statistics.

    Strict dtype promotion does not forbid it, as it would `jnp.promote_types`.
    """
    return np.dtype(np.float64 if dtype == np.float64 else np.float32)
