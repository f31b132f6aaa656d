"""RandAugment, colour jitter and random erasing on the device, with Pillow's pixels.

The laws are those of timm 0.4.12 (`rand-m9-mstd0.5-inc1`), which ViG was trained with; each
operation gives what Pillow gives for the same argument, uint8 in and uint8 out.

    images = rand_augment(key, images, layers=2, magnitude=9.0, magnitude_std=0.5, fill=fill)
    images = erase(key, normalised, probability=0.25)

Row i of the batch draws from `fold_in(key, i)`: a global batch is augmented alike on any number of
devices and processes.
"""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from vig_jax.sharding.kernels import over_batch

RAND_AUGMENT_OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
"""timm's names of the operations that RandAugment draws from, evenly and with replacement."""

_IDENTITY = len(RAND_AUGMENT_OPS)
_CODE = {name: code for code, name in enumerate(RAND_AUGMENT_OPS)}
_JITTER_OPS = ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")
_APPLY_PROBABILITY = 0.5  # of each layer's operation
_MAX_MAGNITUDE = 10.0
_IMAGES_AT_ONCE = 32  # bounds the memory of the temporaries
_ERASE_AREA = (0.02, 1 / 3)  # share of the image
_ERASE_ASPECT = (0.3, 1 / 0.3)  # height / width
_ERASE_ATTEMPTS = 10


class Op(NamedTuple):
    """One operation for one image."""

    code: Int[Array, ""]  # place in RAND_AUGMENT_OPS; beyond them: leave the image alone
    argument: Float[Array, ""]  # as Pillow takes it: degrees, bits, factor, pixels, ...


def rand_augment(
    key: PRNGKeyArray,
    images: UInt8[Array, "B H W 3"],
    *,
    layers: int,
    magnitude: float,
    magnitude_std: float,
    fill: tuple[int, int, int],
) -> UInt8[Array, "B H W 3"]:
    """RandAugment with timm's "increasing" operations.

    Args:
        key: consumed here.
        images: RGB pixels.
        layers: operations in a row, each applied with probability 1/2.
        magnitude: mean strength, 0 to 10.
        magnitude_std: standard deviation of the strength, which is then clipped to 0..10.
        fill: colour of pixels from outside of the image.
    """

    def one(key, image):
        for layer_key in jax.random.split(key, layers):
            op = draw_op(
                layer_key,
                magnitude=magnitude,
                magnitude_std=magnitude_std,
                height=image.shape[0],
                width=image.shape[1],
            )
            image = apply_op(op, image, fill=fill)
        return image

    return _each(one, key, images)


def color_jitter(
    key: PRNGKeyArray, images: UInt8[Array, "B H W 3"], *, strength: float
) -> UInt8[Array, "B H W 3"]:
    """Brightness, contrast and saturation by factors from [1 - strength, 1 + strength].

    The three in random order, no hue: torchvision's ColorJitter as timm uses it where there is no
    RandAugment.

    Args:
        key: consumed here.
        images: RGB pixels.
        strength: 0 to 1.
    """
    codes = jnp.array([_CODE[name] for name in _JITTER_OPS])

    def one(key, image):
        order_key, factor_key = jax.random.split(key)
        factors = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
        for code, factor in zip(jax.random.permutation(order_key, codes), factors, strict=True):
            lut = _curve(code, factor, image)
            image = jnp.where(code == _CODE["ColorIncreasing"], _color(image, factor), lut)
        return image

    return _each(one, key, images)


def erase(
    key: PRNGKeyArray, images: Float[Array, "B H W C"], *, probability: float
) -> Float[Array, "B H W C"]:
    """Random erasing: a rectangle of standard normal noise, a number per pixel and channel.

    Area uniform in 0.02..1/3 of the image, log-uniform aspect; the first of ten attempts that is
    smaller than the image on both sides counts, and if none is the image stays.

    Args:
        key: consumed here.
        images: normalised.
        probability: of erasing, per image.

    Source: "Random Erasing Data Augmentation", AAAI 2020; timm 0.4.12 `RandomErasing` ("pixel").
    """
    _, H, W, C = images.shape

    def one(key, image):
        draw_key, box_key, noise_key = jax.random.split(key, 3)
        top, bottom, left, right = erase_box(box_key, H, W)
        y, x = jnp.arange(H)[:, None], jnp.arange(W)
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        inside &= jax.random.bernoulli(draw_key, probability)
        noise = jax.random.normal(noise_key, (H, W, C), image.dtype)
        return jnp.where(inside[..., None], noise, image)

    return jax.vmap(one)(_row_keys(key, images.shape[0]), images)


def erase_box(key: PRNGKeyArray, height: int, width: int) -> tuple[Array, Array, Array, Array]:
    """Top, bottom, left and right of the rectangle to erase; ends excluded, empty if none fits."""
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    shape = (_ERASE_ATTEMPTS,)
    low, high = _ERASE_AREA
    area = jax.random.uniform(area_key, shape, minval=low, maxval=high) * height * width
    low, high = (math.log(aspect) for aspect in _ERASE_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, shape, minval=low, maxval=high))
    h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits)
    h, w = (jnp.where(fits[first], side[first], 0) for side in (h, w))
    free = jnp.array([height + 1, width + 1]) - jnp.array([h, w])
    top, left = jax.random.randint(place_key, (2,), 0, free)
    return top, top + h, left, left + w


def draw_op(
    key: PRNGKeyArray, *, magnitude: float, magnitude_std: float, height: int, width: int
) -> Op:
    """Draws one layer's operation for an image of height x width pixels."""
    code_key, apply_key, strength_key, sign_key = jax.random.split(key, 4)
    code = jax.random.randint(code_key, (), 0, len(RAND_AUGMENT_OPS))
    strength = magnitude + magnitude_std * jax.random.normal(strength_key)
    level = jnp.clip(strength, 0, _MAX_MAGNITUDE) / _MAX_MAGNITUDE
    signed = jnp.where(jax.random.bernoulli(sign_key), level, -level)
    arguments = {
        "Rotate": 30 * signed,
        "PosterizeIncreasing": 4 - jnp.floor(4 * level),
        "SolarizeIncreasing": 256 - jnp.floor(256 * level),
        "SolarizeAdd": jnp.floor(110 * level),
        "ColorIncreasing": 1 + 0.9 * signed,
        "ContrastIncreasing": 1 + 0.9 * signed,
        "BrightnessIncreasing": 1 + 0.9 * signed,
        "SharpnessIncreasing": 1 + 0.9 * signed,
        "ShearX": 0.3 * signed,
        "ShearY": 0.3 * signed,
        "TranslateXRel": 0.45 * width * signed,
        "TranslateYRel": 0.45 * height * signed,
    }
    argument = jnp.stack([arguments.get(name, jnp.zeros(())) for name in RAND_AUGMENT_OPS])[code]
    applied = jax.random.bernoulli(apply_key, _APPLY_PROBABILITY)
    return Op(jnp.where(applied, code, _IDENTITY), argument)


def apply_op(
    op: Op, image: UInt8[Array, "H W 3"], *, fill: tuple[int, int, int]
) -> UInt8[Array, "H W 3"]:
    """What Pillow makes of the image with this operation.

    On a batch all kinds of operation are computed and one is selected.
    """
    is_op = {name: op.code == code for name, code in _CODE.items()}
    result = _curve(op.code, op.argument, image)
    result = jnp.where(is_op["ColorIncreasing"], _color(image, op.argument), result)
    result = jnp.where(is_op["SharpnessIncreasing"], _sharpness(image, op.argument), result)
    moved = functools.reduce(
        jnp.logical_or,
        [is_op[n] for n in ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")],
    )
    return jnp.where(moved, _warp(image, _matrix(op, image.shape), fill), result)


def _each(function, key, images):
    """Applies `function(key, image)` to every image, some at a time on each device."""

    def some_at_a_time(keys, images):
        return jax.lax.map(lambda xs: function(*xs), (keys, images), batch_size=_IMAGES_AT_ONCE)

    return over_batch(some_at_a_time)(_row_keys(key, images.shape[0]), images)


def _row_keys(key: PRNGKeyArray, rows: int) -> Array:
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))


def _curve(
    code: Int[Array, ""], argument: Float[Array, ""], image: UInt8[Array, "H W 3"]
) -> UInt8[Array, "H W 3"]:
    """The operations that map values to values, per channel; others leave the image as it is."""
    value = jnp.arange(256)
    pixels = image.reshape(-1, 3)
    N = pixels.shape[0]
    histogram = _histogram(pixels)

    used = histogram > 0
    low, high = jnp.argmax(used, axis=0), 255 - jnp.argmax(used[::-1], axis=0)  # [3]
    span = jnp.maximum(high - low, 1)
    one_less = jnp.asarray(_autocontrast_rounding())[low, high]  # [3, 32]
    one_less = jnp.unpackbits(one_less, axis=-1).T.astype(jnp.int32)  # [256, 3]
    stretched = jnp.clip((value[:, None] - low) * 255 // span - one_less, 0, 255)
    contrasted = jnp.where(high > low, stretched, value[:, None])

    step = (N - jnp.take_along_axis(histogram, high[None], axis=0)[0]) // 255
    below = jnp.cumsum(histogram, axis=0) - histogram
    equalised = jnp.minimum(255, (step // 2 + below) // jnp.maximum(step, 1))
    equalised = jnp.where((step > 0) & (high > low), equalised, value[:, None])

    whole = argument.astype(jnp.int32)
    mean = (2 * jnp.sum(_gray(image)) + N) // (2 * N)
    curves = {
        "Invert": 255 - value,
        "PosterizeIncreasing": value & ~((1 << (8 - whole)) - 1),
        "SolarizeIncreasing": jnp.where(value < whole, value, 255 - value),
        "SolarizeAdd": jnp.where(value < 128, jnp.minimum(255, value + whole), value),
        "ContrastIncreasing": _blend(mean, value, argument),
        "BrightnessIncreasing": _blend(0, value, argument),
    }
    table = {name: jnp.broadcast_to(curve[:, None], (256, 3)) for name, curve in curves.items()}
    table |= {"AutoContrast": contrasted, "Equalize": equalised}
    identity = jnp.broadcast_to(value[:, None], (256, 3))
    names = [*RAND_AUGMENT_OPS, "Identity"]
    lut = jnp.stack([table.get(name, identity) for name in names])[code].astype(jnp.uint8)
    return jnp.take_along_axis(lut, pixels.astype(jnp.int32), axis=0).reshape(image.shape)


def _histogram(pixels: UInt8[Array, "N 3"]) -> Int[Array, "256 3"]:
    """How often each value occurs; a product of one-hot digits to base 16 counts the pairs."""
    digits = jnp.arange(16)
    upper = (pixels[..., None] >> 4 == digits).astype(jnp.bfloat16)
    lower = (pixels[..., None] & 15 == digits).astype(jnp.bfloat16)
    # Ones and zeros are exact in bfloat16, and their sums up to 2**24 in float32.
    pairs = jnp.einsum("ncu,ncl->ulc", upper, lower, preferred_element_type=jnp.float32)
    return pairs.reshape(256, 3).astype(jnp.int32)


@functools.cache
def _autocontrast_rounding() -> UInt8[np.ndarray, "256 256 32"]:
    """Where Pillow's float64 arithmetic falls short of an integer that it should reach.

    Bits by lowest used value, highest used value and value.
    """
    low, high, value = np.ogrid[:256, :256, :256]
    span = np.maximum(high - low, 1)
    scale = 255.0 / span
    pillow = np.floor(value * scale + -low * scale).astype(np.int16)
    wanted = (value - low) * 255 // span
    valid = (low < high) & (low <= value) & (value <= high)
    assert np.isin((wanted - pillow)[valid], (0, 1)).all()
    return np.packbits(valid & (pillow < wanted), axis=-1)


def _color(image: UInt8[Array, "H W 3"], factor: Float[Array, ""]) -> UInt8[Array, "H W 3"]:
    return _blend(_gray(image)[..., None], image, factor).astype(jnp.uint8)


def _sharpness(image: UInt8[Array, "H W 3"], factor: Float[Array, ""]) -> UInt8[Array, "H W 3"]:
    """Blends with Pillow's SMOOTH filter, which leaves the border pixels alone."""
    H, W, _ = image.shape
    wide = image.astype(jnp.int32)
    around = sum(wide[1 + i : H - 1 + i, 1 + j : W - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1))
    weighted = around + 4 * wide[1:-1, 1:-1]  # 13 in all
    smooth = wide.at[1:-1, 1:-1].set((2 * weighted + 13) // 26)
    return _blend(smooth, image, factor).astype(jnp.uint8)


def _gray(image: UInt8[Array, "H W 3"]) -> Int[Array, "H W"]:
    """Pillow's luma."""
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(first: Array | int, second: Array, factor: Float[Array, ""]) -> Int[Array, "..."]:
    """Pillow's blend: from `first` at factor 0 to `second` at 1 and beyond, cut off below."""
    a, b = jnp.asarray(first, jnp.float32), second.astype(jnp.float32)
    return jnp.clip(a + factor * (b - a), 0, 255).astype(jnp.int32)


def _matrix(op: Op, shape: tuple[int, ...]) -> Float[Array, "2 3"]:
    """From positions in the result to positions in the image, in pixels."""
    H, W, _ = shape
    angle = jnp.deg2rad(op.argument)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    one, zero, amount = jnp.ones(()), jnp.zeros(()), op.argument
    x, y = W / 2, H / 2
    matrices = {
        # Counter-clockwise about the middle.
        "Rotate": (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y),
        "ShearX": (one, amount, zero, zero, one, zero),
        "ShearY": (one, zero, zero, amount, one, zero),
        "TranslateXRel": (one, zero, amount, zero, one, zero),
        "TranslateYRel": (one, zero, zero, zero, one, amount),
    }
    identity = (one, zero, zero, zero, one, zero)
    names = [*RAND_AUGMENT_OPS, "Identity"]
    rows = jnp.stack([jnp.stack(matrices.get(name, identity)) for name in names])
    return rows[op.code].reshape(2, 3)


def _warp(
    image: UInt8[Array, "H W 3"], matrix: Float[Array, "2 3"], fill: tuple[int, int, int]
) -> UInt8[Array, "H W 3"]:
    """Pillow's affine transformation with its bicubic filter (a = -1, results cut off below)."""
    H, W, _ = image.shape
    y, x = jnp.mgrid[:H, :W] + 0.5
    from_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    from_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    outside = (from_x < 0) | (from_x >= W) | (from_y < 0) | (from_y >= H)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    dx, dy = (from_x - 0.5 - left)[..., None], (from_y - 0.5 - top)[..., None]
    columns = [jnp.clip(left.astype(jnp.int32) + i, 0, W - 1) for i in (-1, 0, 1, 2)]
    rows = [jnp.clip(top.astype(jnp.int32) + i, 0, H - 1) for i in (-1, 0, 1, 2)]
    pixels = image.reshape(-1, 3)

    def at(row, column):
        return pixels[row * W + column].astype(jnp.float32)

    lines = [_cubic([at(row, column) for column in columns], dx) for row in rows]
    value = jnp.clip(_cubic(lines, dy), 0, 255).astype(jnp.uint8)
    return jnp.where(outside[..., None], jnp.asarray(fill, jnp.uint8), value)


def _cubic(values: Sequence[Array], d: Array) -> Array:
    """Pillow's cubic through four values, at d in [0, 1) between the middle ones."""
    v1, v2, v3, v4 = values
    p3 = -v1 + v2 - v3 + v4
    p2 = 2 * (v1 - v2) + v3 - v4
    return v2 + d * (-v1 + v3 + d * (p2 + d * p3))


def mean_color(mean: tuple[float, float, float]) -> tuple[int, int, int]:
    """The fill colour that timm takes: 255 times the mean, rounded."""
    red, green, blue = (min(255, round(255 * x)) for x in mean)
    return red, green, blue
