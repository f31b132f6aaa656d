"""A linear map with SwiGLU's gate by its formula: all implementations are compared with this one.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
from .spec import LinearSwigluSpec

PLATFORMS = None


def supports(spec: LinearSwigluSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: LinearSwigluSpec, x: Float[Array, "... D"], kernel: Float[Array, "D X"]
) -> Float[Array, "... I"]:
    """Computes `kernels_pallas.linear_swiglu`."""
    x, kernel = x.astype(spec.compute_dtype), kernel.astype(spec.compute_dtype)
    product = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    gate, up = product[..., : spec.width], product[..., spec.width :]
    return (gate * jax.nn.sigmoid(gate) * up).astype(spec.dtype)
