"""A linear map with SwiGLU's gate in a Pallas kernel for CUDA GPUs.

The kernel never writes the product to memory, and serves calls that are not differentiated. A
derivative needs the product, so under differentiation XLA computes it, and the kernels of
`kernels_pallas.swiglu` compute the gate.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.config import choose
from ...core.device import Device
from ...swiglu import pallas_triton as swiglu
from ..spec import LinearSwigluSpec
from .config import Config, candidates, heuristic
from .kernels import forward

__all__ = ["PLATFORMS", "TUNED_AS", "Config", "candidates", "heuristic", "run", "supports"]

PLATFORMS = triton.PLATFORMS
TUNED_AS = "linear_swiglu.pallas_triton"

_CAPABILITIES = (9.0, 12.0)
"""Compute capabilities whose GPUs have enough shared memory for the tiles."""


def supports(spec: LinearSwigluSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served.

    It must be bfloat16, with widths that allow 16-byte accesses.
    """
    if spec.dtype != jnp.bfloat16:
        return f"x and kernel must be bfloat16, got {spec.dtype}"
    if spec.features % 16 or spec.width % 16:
        return f"D and I must be multiples of 16, got {spec.features} and {spec.width}"
    if spec.rows == 0:
        return "there is nothing to launch for no rows"
    if spec.rows > triton.MAX_ROWS:
        return f"there must be at most {triton.MAX_ROWS} rows"
    return triton.unsupported(device, _CAPABILITIES)


def run(
    spec: LinearSwigluSpec,
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    *,
    config: Config | None = None,
) -> Float[Array, "... I"]:
    """Computes `kernels_pallas.linear_swiglu`."""
    call = _Call(spec, config or choose(TUNED_AS, Config, heuristic, spec))
    out = _linear_swiglu(call, x.reshape(spec.rows, spec.features), kernel)
    return out.reshape(*x.shape[:-1], spec.width)


class _Call(NamedTuple):
    """The static arguments."""

    spec: LinearSwigluSpec
    config: Config


_Pullback = Callable[[Array], tuple[Array, Array]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _linear_swiglu(call: _Call, x: Array, kernel: Array) -> Array:
    return forward(call.spec, call.config, x, kernel)


def _linear_swiglu_forward(call: _Call, x: Array, kernel: Array) -> tuple[Array, _Pullback]:
    def in_two_steps(x: Array, kernel: Array) -> Array:
        return swiglu.run(call.spec.swiglu, jnp.matmul(x, kernel))

    return jax.vjp(in_two_steps, x, kernel)


def _linear_swiglu_backward(
    call: _Call, pullback: _Pullback, grad_out: Array
) -> tuple[Array, Array]:
    return pullback(grad_out)


_linear_swiglu.defvjp(_linear_swiglu_forward, _linear_swiglu_backward, optimize_remat=True)
