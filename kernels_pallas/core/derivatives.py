"""Derivatives of operators."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .launch import target_device


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


def differentiated_by(
    kernel_module: Any, portable: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Makes a decorator of a forward kernel `f(call, *arrays)`; `call.spec` describes the call.

    A call that is not differentiated runs the kernel. Under differentiation another implementation
    computes both the outputs and the gradients.

    Args:
        kernel_module: The implementation that does so where it supports the call.
        portable: The implementation that does so elsewhere.
    """

    def decorate(kernel: Callable[..., Any]) -> Callable[..., Any]:
        @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
        @functools.wraps(kernel)
        def run(call: Any, *arrays: Any) -> Any:
            return kernel(call, *arrays)

        def forward(call: Any, *arrays: Any) -> tuple[Any, Callable[..., Any]]:
            refused = kernel_module.supports(call.spec, target_device()) is not None
            other = portable if refused else kernel_module
            return jax.vjp(functools.partial(other.run, call.spec), *arrays)

        def backward(call: Any, pullback: Callable[..., Any], cotangents: Any) -> tuple[Any, ...]:
            return tuple(pullback(cotangents))

        run.defvjp(forward, backward, optimize_remat=True)
        return run

    return decorate
