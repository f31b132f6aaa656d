"""SwiGLU's gate in Pallas kernels for CUDA GPUs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.config import choose
from ...core.device import Device
from ..spec import SwigluSpec
from .config import Config, KernelConfig, candidates, heuristic
from .kernels import backward, forward

__all__ = ["PLATFORMS", "TUNED_AS", "Config", "candidates", "heuristic", "run", "supports"]

PLATFORMS = triton.PLATFORMS
TUNED_AS = "swiglu.pallas_triton"


def supports(spec: SwigluSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served: it must be bfloat16 or float32."""
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"x must be bfloat16 or float32, got {spec.dtype}"
    if spec.rows == 0:
        return "there is nothing to launch for no rows"
    if spec.width * KernelConfig().block >= 2**31:
        return f"a width of {spec.width} is beyond its 32-bit indices"
    return triton.unsupported(device)


def run(
    spec: SwigluSpec, x: Float[Array, "... X"], *, config: Config | None = None
) -> Float[Array, "... I"]:
    """Computes `kernels_pallas.swiglu`."""
    call = _Call(spec, config or choose(TUNED_AS, Config, heuristic, spec))
    out = _gate(call, x.reshape(spec.rows, 2 * spec.width))
    return out.reshape(*x.shape[:-1], spec.width)


class _Call(NamedTuple):
    """The static arguments."""

    spec: SwigluSpec
    config: Config


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _gate(call: _Call, x: Array) -> Array:
    return forward(call.spec, call.config.forward, x)


def _gate_forward(call: _Call, x: Array) -> tuple[Array, Array]:
    return forward(call.spec, call.config.forward, x), x


def _gate_backward(call: _Call, x: Array, grad_out: Array) -> tuple[Array]:
    return (backward(call.spec, call.config.backward, x, grad_out),)


_gate.defvjp(_gate_forward, _gate_backward, optimize_remat=True)
