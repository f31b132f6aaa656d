"""A linear map with SwiGLU's gate as the formula says: what every implementation is compared with.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

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
    x, kernel = x.astype(spec.compute_dtype), kernel.astype(spec.compute_dtype)
    product = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    gate, y = product[..., : spec.width], product[..., spec.width :]
    return (gate * jax.nn.sigmoid(gate) * y).astype(spec.dtype)
