"""The SwiGLU MLP on Hopper GPUs: a Mosaic kernel with the gate inside, and XLA's second product.

The kernel serves calls that are not differentiated. Under differentiation another implementation
serves the call.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.config import choose
from ..core.derivatives import differentiated_by
from ..core.device import Device
from ..linear_swiglu import pallas_mosaic_gpu as linear_swiglu
from . import pallas_triton, xla
from .spec import SwigluMlpSpec

__all__ = [
    "PLATFORMS",
    "TUNED_AS",
    "Config",
    "candidates",
    "heuristic",
    "leads",
    "run",
    "supports",
]

PLATFORMS = linear_swiglu.PLATFORMS
TUNED_AS = "swiglu_mlp.pallas_mosaic_gpu"
Config = linear_swiglu.Config


def supports(spec: SwigluMlpSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which its kernel cannot serve a call."""
    return linear_swiglu.supports(spec.linear_swiglu, device)


def leads(spec: SwigluMlpSpec, device: Device) -> bool:
    """Returns whether its kernel is faster than those of other implementations."""
    return linear_swiglu.leads(spec.linear_swiglu, device)


def heuristic(spec: SwigluMlpSpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured: that of the product with the gate."""
    return choose(linear_swiglu.TUNED_AS, Config, linear_swiglu.heuristic, spec.linear_swiglu)


def candidates(spec: SwigluMlpSpec, device: Device | None = None) -> Any:
    """Returns the configs that autotuning tries."""
    return linear_swiglu.candidates(spec.linear_swiglu, device)


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


@differentiated_by(pallas_triton, xla)
def _mlp(call: _Call, x: Array, kernel: Array, down_kernel: Array) -> Array:
    hidden = linear_swiglu.run(call.spec.linear_swiglu, x, kernel, config=call.config)
    return jnp.matmul(hidden, down_kernel)
