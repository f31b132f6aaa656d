"""The pixels under a kernel, one pixel of the kernel after the other: the definition."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.device import Device
from kernels_pallas.im2col.spec import Im2colSpec

PLATFORMS = None


def supports(spec: Im2colSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(spec: Im2colSpec, images: Float[Array, "B H W C"]) -> Float[Array, "B h w X"]:
    """Computes `kernels_pallas.im2col`."""
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    h, w = spec.positions
    out = jnp.zeros((spec.batch, h, w, spec.columns), spec.dtype)
    for row in range(spec.kernel_size):
        for column in range(spec.kernel_size):
            rows = slice(row, row + (h - 1) * spec.stride + 1, spec.stride)
            columns = slice(column, column + (w - 1) * spec.stride + 1, spec.stride)
            first = (row * spec.kernel_size + column) * spec.channels
            pixels = padded[:, rows, columns]
            out = out.at[..., first : first + spec.channels].set(pixels)
    return out.at[..., spec.taken].set(1) if spec.ones else out
