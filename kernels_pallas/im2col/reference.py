"""The pixels under a kernel, indexed by position and by pixel of the kernel: the definition."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
from .spec import Im2colSpec

PLATFORMS = None


def supports(spec: Im2colSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(spec: Im2colSpec, images: Float[Array, "B H W C"]) -> Float[Array, "B h w X"]:
    """Computes `kernels_pallas.im2col`."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = spec.positions
    within = jnp.arange(spec.kernel_size)
    rows = jnp.arange(h)[:, None] * spec.stride + within  # [h, k]
    columns = jnp.arange(w)[:, None] * spec.stride + within  # [w, k]
    pixels = padded[:, rows[:, None, :, None], columns[None, :, None, :]]  # [B, h, w, k, k, C]
    pixels = pixels.reshape(spec.batch, h, w, spec.taken)
    out = jnp.pad(pixels, ((0, 0), (0, 0), (0, 0), (0, spec.columns - spec.taken)))
    return out.at[..., spec.taken].set(1) if spec.ones else out
