"""The SwiGLU MLP in plain XLA: two matrix products, and one pass between them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
from ..linear_swiglu import xla as linear_swiglu
from .spec import SwigluMlpSpec

PLATFORMS = None


def supports(spec: SwigluMlpSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: SwigluMlpSpec,
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    down_kernel: Float[Array, "I O"],
) -> Float[Array, "... O"]:
    """Computes `kernels_pallas.swiglu_mlp`."""
    hidden = linear_swiglu.run(spec.linear_swiglu, x, kernel)
    return jnp.matmul(hidden, down_kernel, precision=spec.linear_swiglu.dot_precision)
