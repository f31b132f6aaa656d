"""SwiGLU's gate in plain XLA, which fuses it into one pass over memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.swiglu.spec import SwigluSpec


def supports(spec: SwigluSpec) -> str | None:
    """Serves every call."""
    return None


def swiglu(spec: SwigluSpec, x: Float[Array, "... X"]) -> Float[Array, "... I"]:
    """See `kernels_pallas.swiglu.api.swiglu`."""
    gate, y = jnp.split(x.astype(spec.compute_dtype), 2, axis=-1)
    return (jax.nn.silu(gate) * y).astype(spec.dtype)
