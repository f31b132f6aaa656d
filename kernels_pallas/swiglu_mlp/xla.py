"""The SwiGLU MLP in plain XLA: two matrix products, and one pass between them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.linear_swiglu import xla
from kernels_pallas.swiglu_mlp.spec import SwigluMlpSpec


def supports(spec: SwigluMlpSpec) -> str | None:
    """Serves every call."""
    return None


def swiglu_mlp(
    spec: SwigluMlpSpec,
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    down_kernel: Float[Array, "I O"],
) -> Float[Array, "... O"]:
    """See `kernels_pallas.swiglu_mlp.api.swiglu_mlp`."""
    hidden = xla.linear_swiglu(spec.linear_swiglu, x, kernel)
    return jnp.matmul(hidden, down_kernel, precision=spec.linear_swiglu.dot_precision)
