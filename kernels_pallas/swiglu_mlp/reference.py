"""The SwiGLU MLP as the formula says: the definition every implementation is compared with.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
    wide = spec.swiglu.compute_dtype
    x, kernel, down_kernel = (array.astype(wide) for array in (x, kernel, down_kernel))
    product = jnp.matmul(x, kernel, precision=jax.lax.Precision.HIGHEST)
    gate, y = product[..., : spec.width], product[..., spec.width :]
    hidden = gate * jax.nn.sigmoid(gate) * y
    out = jnp.matmul(hidden, down_kernel, precision=jax.lax.Precision.HIGHEST)
    return out.astype(spec.dtype)
