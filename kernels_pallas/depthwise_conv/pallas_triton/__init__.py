"""Depthwise 3x3 convolution in Pallas kernels for CUDA GPUs: who is served, and the derivative.

The kernels are in `kernels`, their tiling in `config`.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.pallas_compat import MAX_ROWS
from kernels_pallas.depthwise_conv.pallas_triton.config import Config, heuristic
from kernels_pallas.depthwise_conv.pallas_triton.kernels import convolution, gradients
from kernels_pallas.depthwise_conv.spec import DepthwiseConvSpec


def supports(spec: DepthwiseConvSpec) -> str | None:
    """Serves bfloat16 and float32."""
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"x must be bfloat16 or float32, got {spec.dtype}"
    if spec.batch == 0:
        return "there is nothing to launch for an empty batch"
    if spec.batch * spec.height * spec.width > MAX_ROWS:
        return f"there must be at most {MAX_ROWS} pixels"
    return None


def depthwise_conv(
    spec: DepthwiseConvSpec,
    x: Float[Array, "B h w D"],
    kernel: Float[Array, "3 3 1 D"],
    *,
    config: Config | None = None,
) -> Float[Array, "B h w D"]:
    """See `kernels_pallas.depthwise_conv.api.depthwise_conv`."""
    return _convolve((spec, config or heuristic(spec)), x, kernel)


_Call = tuple[DepthwiseConvSpec, Config]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve(call: _Call, x: Any, kernel: Any) -> Any:
    spec, config = call
    return convolution(spec, config.forward, x, kernel)


def _convolve_forward(call: _Call, x: Any, kernel: Any) -> tuple[Any, tuple[Any, Any]]:
    spec, config = call
    return convolution(spec, config.forward, x, kernel), (x, kernel)


def _convolve_backward(call: _Call, residuals: tuple[Any, Any], grad: Any) -> tuple[Any, Any]:
    """The sums before the activation are computed again: x has to be read anyway."""
    spec, config = call
    x, kernel = residuals
    if spec.activation is not None:
        grad = convolution(spec, config.forward, x, kernel, grad)
    return gradients(spec, config.backward, x, kernel, grad)


_convolve.defvjp(_convolve_forward, _convolve_backward, optimize_remat=True)
