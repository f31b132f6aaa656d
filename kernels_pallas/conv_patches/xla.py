"""The pixels under a kernel in plain XLA: two gathers of whole rows, then of pixels in them."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.conv_patches.spec import ConvPatchesSpec


def supports(spec: ConvPatchesSpec) -> str | None:
    """Serves every call."""
    return None


def conv_patches(spec: ConvPatchesSpec, images: Float[Array, "B H W C"]) -> Float[Array, "B h w X"]:
    """See `kernels_pallas.conv_patches.api.conv_patches`."""
    h, w = spec.positions
    size, stride = spec.kernel_size, spec.stride
    padded = jnp.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    padded = padded.reshape(spec.batch, spec.height + 2, -1)
    step, run = stride * spec.channels, size * spec.channels
    last = (w - 1) * step
    # Each row of the kernel covers neighbouring numbers of a row of pixels.
    pieces = [
        jnp.stack([rows[..., i : i + last + 1 : step] for i in range(run)], axis=-1)
        for rows in (
            padded[:, i : i + (h - 1) * stride + 1 : stride] for i in range(size)
        )
    ]
    zeros = jnp.zeros((spec.batch, h, w, spec.columns - spec.taken), spec.dtype)
    return jnp.concatenate([*pieces, zeros], axis=-1)
