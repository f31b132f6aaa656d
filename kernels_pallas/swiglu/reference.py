"""SwiGLU's gate as the formula says: the definition every implementation is compared with.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

import jax
from jaxtyping import Array, Float

from kernels_pallas.swiglu.spec import SwigluSpec


def supports(spec: SwigluSpec) -> str | None:
    """Serves every call."""
    return None


def swiglu(spec: SwigluSpec, x: Float[Array, "... X"]) -> Float[Array, "... I"]:
    """See `kernels_pallas.swiglu.api.swiglu`."""
    x = x.astype(spec.compute_dtype)
    gate, y = x[..., : spec.width], x[..., spec.width :]
    return (gate * jax.nn.sigmoid(gate) * y).astype(spec.dtype)
