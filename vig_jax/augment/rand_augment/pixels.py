"""Pixel operations of Pillow in integers: tables of values, saturation, sharpness, equalisation."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from vig_jax.augment.rand_augment.operations import CODE, RAND_AUGMENT_OPS, Op

_PARTIAL_HISTOGRAMS = (
    16  # neighbours are mostly alike: in one histogram their additions would queue
)


class Statistics(NamedTuple):
    """Statistics of an image for the contrasts."""

    low: Int[Array, "3"]  # lowest value, per channel
    high: Int[Array, "3"]
    mean: Int[Array, ""]  # of the gray image, rounded


def statistics(image: UInt8[Array, "H W 3"]) -> Statistics:
    """Computes extremes per channel and the mean of the gray image."""
    N = image.size // 3
    # Channel by channel: a GPU reduces contiguous numbers well, and every third number badly.
    channels = [image[..., channel].astype(jnp.int32) for channel in range(3)]
    return Statistics(
        low=jnp.stack([jnp.min(channel) for channel in channels]),
        high=jnp.stack([jnp.max(channel) for channel in channels]),
        mean=(2 * jnp.sum(_gray(image)) + N) // (2 * N),
    )


def recolour(
    ops: Op, images: UInt8[Array, "B H W 3"], tables: UInt8[Array, "B 256 3"]
) -> UInt8[Array, "B H W 3"]:
    """Changes the saturation of images that drew it, and looks the others up in the tables.

    Args:
        ops: one per image, fields of shape [B].
        images: RGB pixels.
        tables: from `table`, one per image.
    """
    mapped = jax.vmap(_mapped)(tables, images)
    factor = ops.argument[:, None, None, None]
    saturated = _blend(_gray(images)[..., None], images, factor).astype(jnp.uint8)
    is_color = (ops.code == CODE["ColorIncreasing"])[:, None, None, None]
    return jnp.where(is_color, saturated, mapped)


def _mapped(values: UInt8[Array, "256 3"], image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    pixels = image.reshape(-1, 3).astype(jnp.int32)
    return jnp.take_along_axis(values, pixels, axis=0, mode="clip").reshape(image.shape)


def contrast(op: Op, image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """Applies AutoContrast or contrast."""
    return _mapped(table(op, statistics(image)), image)


def table(op: Op, facts: Statistics | None = None) -> UInt8[Array, "256 3"]:
    """Returns the new value of every value, per channel.

    Args:
        op: an operation that maps values to values. Others get a table that changes nothing.
        facts: of the image. Without them, the contrasts get a table that changes nothing.
    """
    value = jnp.arange(256)
    whole = op.argument.astype(jnp.int32)
    curves = {
        "Invert": 255 - value,
        "PosterizeIncreasing": value & ~((1 << (8 - whole)) - 1),
        "SolarizeIncreasing": jnp.where(value < whole, value, 255 - value),
        "SolarizeAdd": jnp.where(value < 128, jnp.minimum(255, value + whole), value),
        "BrightnessIncreasing": _blend(0, value, op.argument),
    }
    if facts:
        curves["ContrastIncreasing"] = _blend(facts.mean, value, op.argument)
    tables = {name: jnp.broadcast_to(curve[:, None], (256, 3)) for name, curve in curves.items()}
    if facts:
        tables["AutoContrast"] = _stretched(facts.low, facts.high)
    identity = jnp.broadcast_to(value[:, None], (256, 3))
    names = [*RAND_AUGMENT_OPS, "Identity"]
    return jnp.stack([tables.get(name, identity) for name in names])[op.code].astype(jnp.uint8)


def _stretched(low: Int[Array, "3"], high: Int[Array, "3"]) -> Int[Array, "256 3"]:
    """Returns the table of AutoContrast; a channel of one value stays."""
    value = jnp.arange(256)[:, None]
    one_less = jnp.asarray(_autocontrast_rounding())[low, high]  # [3, 32]
    one_less = jnp.unpackbits(one_less, axis=-1).T.astype(jnp.int32)  # [256, 3]
    span = jnp.maximum(high - low, 1)
    stretched = jnp.clip((value - low) * 255 // span - one_less, 0, 255)
    return jnp.where(high > low, stretched, value)


def equalize(op: Op, image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """Equalises the histogram of each channel as Pillow does; an image of one value stays."""
    del op
    pixels = image.reshape(-1, 3)
    N = pixels.shape[0]
    histogram = _histogram(pixels)
    used = histogram > 0
    low, high = jnp.argmax(used, axis=0), 255 - jnp.argmax(used[::-1], axis=0)  # [3]
    step = (N - jnp.take_along_axis(histogram, high[None], axis=0)[0]) // 255
    below = jnp.cumsum(histogram, axis=0) - histogram
    values = jnp.minimum(255, (step // 2 + below) // jnp.maximum(step, 1))
    values = jnp.where((step > 0) & (high > low), values, jnp.arange(256)[:, None])
    return _mapped(values.astype(jnp.uint8), image)


def _histogram(pixels: UInt8[Array, "N 3"]) -> Int[Array, "256 3"]:
    """Counts each value."""
    part = (jnp.arange(pixels.shape[0]) % _PARTIAL_HISTOGRAMS)[:, None]
    parts = jnp.zeros((_PARTIAL_HISTOGRAMS, 256, 3), jnp.int32)
    return jnp.sum(parts.at[part, pixels.astype(jnp.int32), jnp.arange(3)].add(1), axis=0)


@functools.cache
def _autocontrast_rounding() -> UInt8[np.ndarray, "256 256 32"]:
    """Returns the cases where rounding makes Pillow's float64 result one less than the exact one.

    Returns:
        Packed bits, indexed by lowest value, highest value, and value.
    """
    bits = np.zeros((256, 256, 256), bool)
    for low in range(255):
        high, value = np.arange(low + 1, 256)[:, None], np.arange(low, 256)
        scale = 255.0 / (high - low)
        pillow = np.floor(value * scale + -low * scale).astype(int)
        exact = (value - low) * 255 // (high - low)
        valid = value <= high
        assert np.isin((exact - pillow)[valid], (0, 1)).all()
        bits[low, low + 1 :, low:] = valid & (pillow < exact)
    return np.packbits(bits, axis=-1)


def sharpness(op: Op, image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """Blends with Pillow's SMOOTH filter, which leaves the border pixels alone."""
    H, W, _ = image.shape
    wide = image.astype(jnp.int32)
    around = sum(wide[1 + i : H - 1 + i, 1 + j : W - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1))
    weighted = around + 4 * wide[1:-1, 1:-1]  # the weights add up to 13
    smooth = wide.at[1:-1, 1:-1].set((2 * weighted + 13) // 26)
    return _blend(smooth, image, op.argument).astype(jnp.uint8)


def _gray(image: UInt8[Array, "*B H W 3"]) -> Int[Array, "*B H W"]:
    """Returns Pillow's luma."""
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(first: Array | int, second: Array, factor: Array) -> Int[Array, "..."]:
    """Blends as Pillow does: `first` at factor 0, `second` at 1, extrapolated beyond, truncated."""
    a, b = jnp.asarray(first, jnp.float32), second.astype(jnp.float32)
    return jnp.clip(a + factor * (b - a), 0, 255).astype(jnp.int32)
