"""Normalisation of uint8 pixels."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32, UInt8

from vig_jax.layers.padding import zero_outside

Channels = tuple[float, float, float]  # red, green, blue, in units of [0, 1]
IMAGENET_MEAN: Channels = (0.485, 0.456, 0.406)
IMAGENET_STD: Channels = (0.229, 0.224, 0.225)


def normalise(
    images: UInt8[Array, "B H W 3"], mean: Channels, std: Channels
) -> Float[Array, "B H W 3"]:
    """Scales pixels to [0, 1], subtracts `mean` and divides by `std`, per channel."""
    wide = images.astype(jnp.result_type(float))  # strict promotion refuses uint8
    return (wide / 255.0 - jnp.asarray(mean)) / jnp.asarray(std)


def normalise_parts(
    images: UInt8[Array, "B H W 3"],
    sizes: Int32[Array, "B 2"],
    mean: Channels,
    std: Channels,
) -> Float[Array, "B H W 3"]:
    """Normalises images that are padded at the right and below; the padding is then 0.

    Args:
        images: RGB pixels.
        sizes: height and width of the image part of each.
        mean: per channel, in units of [0, 1].
        std: likewise.
    """
    return zero_outside(normalise(images, mean, std), sizes, 1)
