"""Depthwise 3x3 convolution in Pallas kernels for CUDA GPUs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.config import choose
from ...core.device import Device
from ..spec import DepthwiseConvSpec
from .config import Config, candidates, heuristic
from .kernels import backward, forward

__all__ = ["PLATFORMS", "TUNED_AS", "Config", "candidates", "heuristic", "run", "supports"]

PLATFORMS = triton.PLATFORMS
TUNED_AS = "depthwise_conv.pallas_triton"


def supports(spec: DepthwiseConvSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served: it must be bfloat16 or float32."""
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"x must be bfloat16 or float32, got {spec.dtype}"
    if spec.batch == 0:
        return "there is nothing to launch for an empty batch"
    if spec.batch * spec.height * spec.width > triton.MAX_ROWS:
        return f"there must be at most {triton.MAX_ROWS} pixels"
    return triton.unsupported(device)


def run(
    spec: DepthwiseConvSpec,
    x: Float[Array, "B h w D"],
    kernel: Float[Array, "3 3 1 D"],
    *,
    config: Config | None = None,
) -> Float[Array, "B h w D"]:
    """Computes `kernels_pallas.depthwise_conv`."""
    return _convolve(_Call(spec, config or choose(TUNED_AS, Config, heuristic, spec)), x, kernel)


class _Call(NamedTuple):
    """The static arguments."""

    spec: DepthwiseConvSpec
    config: Config


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(call: _Call, x: Array, kernel: Array) -> Array:
    return forward(call.spec, call.config.forward, x, kernel)


def _convolve_forward(call: _Call, x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return forward(call.spec, call.config.forward, x, kernel), (x, kernel)


def _convolve_backward(
    call: _Call, residuals: tuple[Array, Array], grad: Array
) -> tuple[Array, Array]:
    """Recomputes the sums before the activation, because x has to be read anyway."""
    spec, config = call
    x, kernel = residuals
    if spec.activation is not None:
        grad = forward(spec, config.forward, x, kernel, grad)
    return backward(spec, config.backward, x, kernel, grad)


_convolve.defvjp(_convolve_forward, _convolve_backward, optimize_remat=True)
