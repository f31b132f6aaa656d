"""Depthwise 3x3 convolution as a sum over the neighbours of a pixel: the definition."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
from .spec import DepthwiseConvSpec

PLATFORMS = None


def supports(spec: DepthwiseConvSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: DepthwiseConvSpec, x: Float[Array, "B h w D"], kernel: Float[Array, "3 3 1 D"]
) -> Float[Array, "B h w D"]:
    """Computes `kernels_pallas.depthwise_conv`."""
    padded = jnp.pad(x.astype(spec.wide_dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = jnp.arange(spec.height)[:, None] + jnp.arange(3)  # [h, 3]
    columns = jnp.arange(spec.width)[:, None] + jnp.arange(3)  # [w, 3]
    neighbours = padded[:, rows[:, None, :, None], columns[None, :, None, :]]  # [B, h, w, 3, 3, D]
    weights = kernel[:, :, 0].astype(spec.wide_dtype)
    out = jnp.einsum("bhwijd,ijd->bhwd", neighbours, weights, precision="highest")
    if spec.activation == "silu":
        out = jax.nn.silu(out)
    return out.astype(spec.dtype)
