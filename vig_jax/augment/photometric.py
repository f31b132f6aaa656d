"""Photometric distortion on the device, with OpenCV's pixels; and what follows it.

Brightness, contrast, saturation and hue change at random, in the order of mmsegmentation's
PhotoMetricDistortion. Each step computes in float32, is clipped to 0..255 and truncated to uint8.
Hue and saturation follow OpenCV's 8-bit HSV, with hue in 0..179. On the way back to RGB OpenCV
truncates where it computes with vectors of 32 pixels, and rounds the pixels that remain at the end
of a row; so it is done here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32, PRNGKeyArray, UInt8

from vig_jax.augment.keys import row_keys
from vig_jax.sharding.kernels import ROWS, shard_kernel

_BRIGHTNESS = 32.0  # largest change
_FACTORS = (0.5, 1.5)  # of contrast and saturation
_HUE = (-18, 18)  # change; the end is excluded
_HUES = 180  # of OpenCV's 8-bit hue
_FRACTION = 12  # bits of the factors in the tables of `hsv_from_rgb`
_CHANCE = 0.5  # of each operation
_VECTOR = 32  # pixels that OpenCV converts at once (AVX2)


class Distortion(NamedTuple):
    """The random numbers of one image, or with a leading axis of several."""

    brightness: Float[Array, "*B"]  # added; 0: unchanged
    contrast: Float[Array, "*B"]  # factor; 1: unchanged
    contrast_first: Bool[Array, "*B"]  # contrast comes before saturation and hue, or after them
    saturation: Float[Array, "*B"]  # factor
    change_saturation: Bool[Array, "*B"]
    hue: Int[Array, "*B"]  # added, modulo 180
    change_hue: Bool[Array, "*B"]  # also by 0: the way to HSV and back alters pixels


def draw_distortion(key: PRNGKeyArray) -> Distortion:
    """Draws for one image: each operation has probability 1/2, and so has either order."""
    applied, first, *keys = jax.random.split(key, 6)
    does = jax.random.bernoulli(applied, _CHANCE, (4,))
    low, high = _FACTORS
    brightness = jax.random.uniform(keys[0], minval=-_BRIGHTNESS, maxval=_BRIGHTNESS)
    contrast, saturation = (jax.random.uniform(k, minval=low, maxval=high) for k in keys[1:3])
    return Distortion(
        brightness=jnp.where(does[0], brightness, 0.0),
        contrast=jnp.where(does[1], contrast, 1.0),
        contrast_first=jax.random.bernoulli(first),
        saturation=saturation,
        change_saturation=does[2],
        hue=jax.random.randint(keys[3], (), *_HUE),
        change_hue=does[3],
    )


def photometric_distortion(
    key: PRNGKeyArray, images: UInt8[Array, "B H W 3"], sizes: Int32[Array, "B 2"]
) -> UInt8[Array, "B H W 3"]:
    """Changes brightness, contrast, saturation and hue. Row i draws from `fold_in(key, i)`.

    Args:
        key: consumed here.
        images: RGB pixels, perhaps padded at the right and below. The padding changes too.
        sizes: height and width of the image part of each.

    Source: mmsegmentation 1.2.2, `PhotoMetricDistortion` with its default settings.
    """

    def distorted(keys, images, sizes):
        return jax.vmap(distort)(images, jax.vmap(draw_distortion)(keys), sizes[:, 1])

    keys = row_keys(key, images.shape[0])
    return shard_kernel(distorted, (ROWS, ROWS, ROWS), ROWS)(keys, images, sizes)


def distort(
    image: UInt8[Array, "H W 3"], draws: Distortion, width: Int[Array, ""] | int
) -> UInt8[Array, "H W 3"]:
    """Applies given draws to an image.

    Args:
        image: RGB pixels.
        draws: fields without axes.
        width: of the image part, pixels: the last `width % 32` of a row are rounded.
    """
    rounded = jnp.arange(image.shape[1]) >= width // _VECTOR * _VECTOR
    image = _truncated(image.astype(jnp.float32) + draws.brightness)
    image = _scaled(image, jnp.where(draws.contrast_first, draws.contrast, 1.0))
    hue, saturation, value = hsv_from_rgb(image)
    saturated = rgb_from_hsv(hue, _scaled(saturation, draws.saturation), value, rounded)
    image = jnp.where(draws.change_saturation, saturated, image)
    hue, saturation, value = hsv_from_rgb(image)
    hue = (hue.astype(jnp.int32) + draws.hue) % _HUES
    turned = rgb_from_hsv(hue.astype(jnp.uint8), saturation, value, rounded)
    image = jnp.where(draws.change_hue, turned, image)
    return _scaled(image, jnp.where(draws.contrast_first, 1.0, draws.contrast))


def _scaled(pixels: UInt8[Array, "..."], factor: Float[Array, ""]) -> UInt8[Array, "..."]:
    return _truncated(pixels.astype(jnp.float32) * factor.astype(jnp.float32))


def _truncated(pixels: Float[Array, "..."]) -> UInt8[Array, "..."]:
    return jnp.clip(pixels, 0, 255).astype(jnp.uint8)


def hsv_from_rgb(
    image: UInt8[Array, "*S 3"],
) -> tuple[UInt8[Array, "*S"], UInt8[Array, "*S"], UInt8[Array, "*S"]]:
    """Returns OpenCV's 8-bit hue (0..179), saturation and value of RGB pixels, exactly."""
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    value = jnp.maximum(jnp.maximum(red, green), blue)
    span = value - jnp.minimum(jnp.minimum(red, green), blue)
    hue = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * span, red - green + 4 * span),
    )
    hue = _rounded(hue * _table(_HUES / 6)[span])
    saturation = _rounded(span * _table(255.0)[value])
    hue = jnp.where(hue < 0, hue + _HUES, hue)
    return hue.astype(jnp.uint8), saturation.astype(jnp.uint8), value.astype(jnp.uint8)


def _table(numerator: float) -> Int32[Array, "256"]:
    """Returns numerator / i with 12 fractional bits for i of 0..255; 0 for i = 0."""
    quotients = np.rint(numerator * 2**_FRACTION / np.maximum(np.arange(256), 1))
    quotients[0] = 0
    return jnp.asarray(quotients.astype(np.int32))


def _rounded(number: Int32[Array, "..."]) -> Int32[Array, "..."]:
    """Drops the fractional bits; halves go up."""
    return (number + (1 << (_FRACTION - 1))) >> _FRACTION


def rgb_from_hsv(
    hue: UInt8[Array, "*S W"],
    saturation: UInt8[Array, "*S W"],
    value: UInt8[Array, "*S W"],
    rounded: Bool[Array, "W"],
) -> UInt8[Array, "*S W 3"]:
    """Returns the RGB pixels of OpenCV's 8-bit hue (0..179), saturation and value.

    Args:
        hue: of each pixel.
        saturation: likewise.
        value: likewise.
        rounded: whether a column is rounded, halves to even; otherwise it is truncated.
    """
    scaled = hue.astype(jnp.float32) * np.float32(6 / _HUES)
    sector = jnp.floor(scaled)
    part = scaled - sector
    s, v = (x.astype(jnp.float32) * np.float32(1 / 255) for x in (saturation, value))
    low = v * (1 - s)
    falling, rising = v * (1 - s * part), v * (1 - s * (1 - part))
    sector = sector.astype(jnp.int32)
    red = _choose(sector, (v, falling, low, low, rising, v))
    green = _choose(sector, (rising, v, v, falling, low, low))
    blue = _choose(sector, (low, low, rising, v, v, falling))
    rgb = jnp.stack([red, green, blue], axis=-1) * np.float32(255)
    return _truncated(jnp.where(rounded[:, None], jnp.round(rgb), rgb))


def _choose(sector: Int32[Array, "..."], cases: tuple[Array, ...]) -> Array:
    """Returns the case of each pixel's sector."""
    return jnp.select([sector == i for i in range(len(cases) - 1)], cases[:-1], cases[-1])
