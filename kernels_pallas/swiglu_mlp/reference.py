"""The SwiGLU MLP by its formula: all implementations are compared with this one.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
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
    wide = spec.swiglu.compute_dtype
    x, kernel, down_kernel = (array.astype(wide) for array in (x, kernel, down_kernel))
    product = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    gate, up = product[..., : spec.width], product[..., spec.width :]
    hidden = gate * jax.nn.sigmoid(gate) * up
    out = jnp.matmul(hidden, down_kernel, precision=jax.lax.Precision.HIGHEST)
    return out.astype(spec.dtype)
