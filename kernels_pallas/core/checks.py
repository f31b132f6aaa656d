"""Argument checks shared by all operators."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Types that operators take."""


def checked_array(name: str, value: Any) -> jax.Array:
    """Returns `value` as a JAX array.

    Raises:
        TypeError: It is not an array, or its type is not in DTYPES. The message has `name`.
    """
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be a JAX or numpy array, got {type(value).__name__}")
    array = jnp.asarray(value)
    if array.dtype.name not in DTYPES:
        raise TypeError(f"{name} must be one of {', '.join(DTYPES)}, got {array.dtype}: cast")
    return array
