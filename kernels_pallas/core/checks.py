"""What every operator asks of an array before it looks at its shape."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

DTYPES = ("float32", "bfloat16", "float16", "float64")
"""Types that operators take."""


def checked_array(name: str, value: Any) -> jax.Array:
    """`value` as a JAX array.

    Raises:
        TypeError: It is not an array, or of a type not in DTYPES; `name` is told.
    """
    if not isinstance(value, jax.Array | np.ndarray):
        raise TypeError(f"{name} must be a JAX or numpy array, got {type(value).__name__}")
    array = jnp.asarray(value)
    if array.dtype.name not in DTYPES:
        raise TypeError(f"{name} must be one of {', '.join(DTYPES)}, got {array.dtype}: cast")
    return array
