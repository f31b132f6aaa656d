"""SwiGLU's gate in plain XLA, which fuses it into one pass over memory."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
from .spec import SwigluSpec

PLATFORMS = None


def supports(spec: SwigluSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(spec: SwigluSpec, x: Float[Array, "... X"]) -> Float[Array, "... I"]:
    """Computes `kernels_pallas.swiglu`."""
    gate, up = jnp.split(x.astype(spec.compute_dtype), 2, axis=-1)
    return (jax.nn.silu(gate) * up).astype(spec.dtype)
