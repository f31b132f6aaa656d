"""Derivatives by the arrays of an operator that have some."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def is_float(x: Any) -> bool:
    """Returns whether an array, or its description, has a floating type."""
    return jnp.issubdtype(x.dtype, jnp.floating)


def vjp_of_floats(run: Callable[..., Any], *arrays: Any) -> tuple[Any, Callable[..., Any]]:
    """Computes `jax.vjp`, with integer arrays as constants.

    Returns:
        The results, and the function from their cotangents to the gradients of the floating arrays,
        in order.
    """
    floats = [i for i, x in enumerate(arrays) if is_float(x)]

    def of_floats(*moving: Any) -> Any:
        every = list(arrays)
        for i, x in zip(floats, moving, strict=True):
            every[i] = x
        return run(*every)

    return jax.vjp(of_floats, *(arrays[i] for i in floats))
