"""SwiGLU's gate by its formula: all implementations are compared with this one.

Source: Shazeer, "GLU Variants Improve Transformer", 2020.
"""

import jax
from jaxtyping import Array, Float

from ..core.device import Device
from .spec import SwigluSpec

PLATFORMS = None


def supports(spec: SwigluSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(spec: SwigluSpec, x: Float[Array, "... X"]) -> Float[Array, "... I"]:
    """Computes `kernels_pallas.swiglu`."""
    x = x.astype(spec.compute_dtype)
    gate, up = x[..., : spec.width], x[..., spec.width :]
    return (gate * jax.nn.sigmoid(gate) * up).astype(spec.dtype)
