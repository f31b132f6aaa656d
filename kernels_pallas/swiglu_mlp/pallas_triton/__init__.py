"""The SwiGLU MLP on CUDA GPUs: XLA's matrix products around Pallas kernels of the gate.

The backward pass gets the gate's input and not its output. The kernel that computes the gate's
gradient recomputes the output.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.config import choose
from ...core.device import Device
from ...core.products import weight_gradient
from ...linear_swiglu import pallas_triton as linear_swiglu
from ...swiglu import pallas_triton as swiglu
from ...swiglu.pallas_triton import kernels as gate
from ..spec import SwigluMlpSpec
from .config import Config, candidates, heuristic

__all__ = ["PLATFORMS", "TUNED_AS", "Config", "candidates", "heuristic", "run", "supports"]

PLATFORMS = triton.PLATFORMS
TUNED_AS = "swiglu_mlp.pallas_triton"


def supports(spec: SwigluMlpSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which its kernels cannot serve a call."""
    reason = linear_swiglu.supports(spec.linear_swiglu, device)
    return reason or swiglu.supports(spec.swiglu, device)


def run(
    spec: SwigluMlpSpec,
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    down_kernel: Float[Array, "I O"],
    *,
    config: Config | None = None,
) -> Float[Array, "... O"]:
    """Computes `kernels_pallas.swiglu_mlp`."""
    call = _Call(spec, config or choose(TUNED_AS, Config, heuristic, spec))
    out = _mlp(call, x.reshape(spec.rows, spec.features), kernel, down_kernel)
    return out.reshape(*x.shape[:-1], spec.out_features)


class _Call(NamedTuple):
    """The static arguments."""

    spec: SwigluMlpSpec
    config: Config


class _Residuals(NamedTuple):
    """Arrays that are kept for the backward pass; the gate's output is not among them."""

    x: Array
    product: Array
    kernel: Array
    down_kernel: Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mlp(call: _Call, x: Array, kernel: Array, down_kernel: Array) -> Array:
    hidden = linear_swiglu.run(call.spec.linear_swiglu, x, kernel, config=call.config.forward)
    return jnp.matmul(hidden, down_kernel)


def _mlp_forward(
    call: _Call, x: Array, kernel: Array, down_kernel: Array
) -> tuple[Array, _Residuals]:
    product = jnp.matmul(x, kernel)
    hidden = gate.forward(call.spec.swiglu, call.config.training.forward, product)
    return jnp.matmul(hidden, down_kernel), _Residuals(x, product, kernel, down_kernel)


def _mlp_backward(
    call: _Call, residuals: _Residuals, grad_out: Array
) -> tuple[Array, Array, Array]:
    x, product, kernel, down_kernel = residuals
    grad_hidden = jnp.matmul(grad_out, down_kernel.T)
    grad_product, hidden = gate.backward_and_output(
        call.spec.swiglu, call.config.training.backward, product, grad_hidden
    )
    grad_x = jnp.matmul(grad_product, kernel.T)
    return grad_x, weight_gradient(x, grad_product), weight_gradient(hidden, grad_out)


_mlp.defvjp(_mlp_forward, _mlp_backward, optimize_remat=True)
