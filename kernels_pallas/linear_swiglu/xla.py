"""A linear map with SwiGLU's gate in plain XLA: a matrix product, then one pass over it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.linear_swiglu.spec import LinearSwigluSpec


def supports(spec: LinearSwigluSpec) -> str | None:
    """Serves every call."""
    return None


def linear_swiglu(
    spec: LinearSwigluSpec, x: Float[Array, "... D"], kernel: Float[Array, "D X"]
) -> Float[Array, "... I"]:
    """See `kernels_pallas.linear_swiglu.api.linear_swiglu`."""
    product = jnp.matmul(x, kernel, precision=spec.dot_precision)
    gate, y = jnp.split(product.astype(spec.compute_dtype), 2, axis=-1)
    return (jax.nn.silu(gate) * y).astype(spec.dtype)
