"""The pixels under a kernel in plain XLA: slices and reshapes of rows of pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
from ..core.integers import cdiv
from .spec import Im2colSpec

PLATFORMS = None


def supports(spec: Im2colSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(spec: Im2colSpec, images: Float[Array, "B H W C"]) -> Float[Array, "B h w X"]:
    """Computes `kernels_pallas.im2col`."""
    h, w = spec.positions
    size, stride = spec.kernel_size, spec.stride
    # A row of the kernel covers neighbouring numbers of a row of pixels. They are cut where the
    # positions begin: a reshape gives the numbers from each position to the next.
    step, covered = stride * spec.channels, size * spec.channels
    overlaps = range(cdiv(covered, step))
    right = max(0, (w + len(overlaps) - 1) * stride - spec.width - 1)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, right), (0, 0)))
    padded = padded.reshape(*padded.shape[:2], padded.shape[2] * spec.channels)
    pieces = [
        padded[:, i : i + (h - 1) * stride + 1 : stride, j * step : (j + w) * step].reshape(
            spec.batch, h, w, step
        )[..., : covered - j * step]
        for i in range(size)
        for j in overlaps
    ]
    behind = (jnp.arange(spec.taken, spec.columns) == spec.taken) & spec.ones
    behind = jnp.broadcast_to(behind.astype(spec.dtype), (spec.batch, h, w, behind.size))
    return jnp.concatenate([*pieces, behind], axis=-1)
