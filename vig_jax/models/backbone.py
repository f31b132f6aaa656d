"""What the model families share around their blocks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class FeatureInfo(NamedTuple):
    """One entry of `feature_info`, in timm's terms."""

    num_chs: int  # channels
    reduction: int  # stride against the image
    module: str


def check_images(images: jax.Array) -> None:
    """Refuses what is not a batch of normalised images.

    Raises:
        ValueError: the array is not [B, H, W, 3] or not floating-point.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images have shape {images.shape}; [B, H, W, 3] is wanted")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(f"images are {images.dtype}; normalised floating-point pixels are wanted")


def check_heads(embed_dim: int, num_heads: int) -> None:
    """Refuses a width that keys (half of it) and values (all of it) cannot split into heads.

    Raises:
        ValueError: `embed_dim` is no multiple of twice `num_heads`.
    """
    if num_heads < 1 or embed_dim < 1 or embed_dim % (2 * num_heads):
        raise ValueError(
            f"embed_dim={embed_dim} must be a multiple of 2 * num_heads ({2 * num_heads}), so that "
            "keys and values split into heads"
        )


def drop_path_rates(last: float, depth: int) -> list[float]:
    """Rates of `depth` blocks, rising linearly from 0 to `last`.

    Raises:
        ValueError: `last` is not a probability below 1.
    """
    if not 0 <= last < 1:
        raise ValueError(f"drop_path_rate={last} must be at least 0 and below 1")
    return [float(rate) for rate in np.linspace(0, last, depth)]


def mean_pool(x: Float[Array, "B h w D"]) -> Float[Array, "B D"]:
    """The mean over tokens, accumulated and returned in float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
