"""A linear map with SwiGLU's gate in plain XLA: a matrix product, then one pass over it."""

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
    product = jnp.matmul(x, kernel, precision=spec.dot_precision)
    gate, up = jnp.split(product.astype(spec.compute_dtype), 2, axis=-1)
    return (jax.nn.silu(gate) * up).astype(spec.dtype)
