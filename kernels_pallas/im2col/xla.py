"""The pixels under a kernel in plain XLA: slices and reshapes of rows of pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.im2col.spec import Im2colSpec


def supports(spec: Im2colSpec) -> str | None:
    """Serves every call."""
    return None


def im2col(spec: Im2colSpec, images: Float[Array, "B H W C"]) -> Float[Array, "B h w X"]:
    """See `kernels_pallas.im2col.api.im2col`."""
    h, w = spec.positions
    size, stride = spec.kernel_size, spec.stride
    # A row of the kernel covers neighbouring numbers of a row of pixels: those between its position
    # and the next, which a reshape sets apart, then those between the next and the one after it.
    step, run = stride * spec.channels, size * spec.channels
    overlaps = range(-(-run // step))
    right = max(0, (w + len(overlaps) - 1) * stride - spec.width - 1)
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, right), (0, 0)))
    padded = padded.reshape(*padded.shape[:2], padded.shape[2] * spec.channels)
    pieces = [
        padded[:, i : i + (h - 1) * stride + 1 : stride, j * step : (j + w) * step].reshape(
            spec.batch, h, w, step
        )[..., : run - j * step]
        for i in range(size)
        for j in overlaps
    ]
    behind = (jnp.arange(spec.taken, spec.columns) == spec.taken) & spec.ones
    behind = jnp.broadcast_to(behind.astype(spec.dtype), (spec.batch, h, w, behind.size))
    return jnp.concatenate([*pieces, behind], axis=-1)
