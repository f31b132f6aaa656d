"""RandAugment, colour jitter and random erasing on the device, with Pillow's pixels.

The laws are those of timm 0.4.12 (`rand-m9-mstd0.5-inc1`), which ViG was trained with; each
operation gives what Pillow gives for the same argument, uint8 in and uint8 out.

    images = rand_augment(key, images, layers=2, magnitude=9.0, magnitude_std=0.5, fill=fill)
    images = erase(key, normalised, probability=0.25)

Row i of the batch draws from `fold_in(key, i)`: a global batch is augmented alike on any number of
devices and processes.

Every image takes one operation of fifteen, and what it does not take should not be computed. Most
operations that map values to values are a table of 256 values, so they are one pass over the batch,
and saturation goes with it. The others need the neighbours (sharpness, the five moves), a histogram
(Equalize), or the extremes or mean of the image (AutoContrast, contrast): the images that take one
are collected and worked on some at a time, in as many turns as nearly every batch can do with. A
loop does what is left: it alone makes the host wait for the device, once in a layer.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

from vig_jax.sharding.kernels import ROWS, shard_kernel

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
_MOVES = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
_CONTRASTS = ("AutoContrast", "ContrastIncreasing")
_JITTER_OPS = ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")
_APPLY_PROBABILITY = 0.5  # of each layer's operation
_MAX_MAGNITUDE = 10.0
# A turn of work on the images that take an operation is on one in so many of the batch; what it has
# too many is computed in vain. Of 256 images a layer expects 43 to be moved, 17 to take a contrast
# and 9 each of the others: four turns of 16, one of 32 and one of 16 each are enough for 99 batches
# in 100.
_MOVES_SHARE = 16
_CONTRASTS_SHARE = 8
_OTHERS_SHARE = 16
_USUAL_DEVIATIONS = 2.5  # beyond the mean that the turns are enough for
_PARTIAL_HISTOGRAMS = 16  # summed at the end: neighbours are mostly alike, and one adds at a time
_SHIFTS = np.array([0, 8, 16], np.uint32)  # of red, green and blue in a pixel
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
    _, H, W, _ = images.shape
    law = functools.partial(
        draw_op, magnitude=magnitude, magnitude_std=magnitude_std, height=H, width=W
    )

    def augment(keys, images):
        layer_keys = jax.vmap(lambda key: jax.random.split(key, layers))(keys)
        for layer in range(layers):
            images = _apply_ops(jax.vmap(law)(layer_keys[:, layer]), images, fill)
        return images

    return shard_kernel(augment, (ROWS, ROWS), ROWS)(_row_keys(key, images.shape[0]), images)


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

    def draw(key):
        order_key, factor_key = jax.random.split(key)
        factors = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
        return Op(jax.random.permutation(order_key, codes), factors)

    def jitter(keys, images):
        ops = jax.vmap(draw)(keys)  # [B, 3]
        for i in range(len(_JITTER_OPS)):
            op = Op(ops.code[:, i], ops.argument[:, i])
            tables = jax.vmap(_table)(op, jax.vmap(_statistics)(images))
            images = _recolour(op, images, tables)
        return images

    return shard_kernel(jitter, (ROWS, ROWS), ROWS)(_row_keys(key, images.shape[0]), images)


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
    # Pixels of the largest rectangle, its sides rounded: no more numbers are drawn.
    most = min(H * W, math.ceil(_ERASE_AREA[1] * H * W + (H + W) / 2 + 1))

    def one(key, image):
        draw_key, box_key, noise_key = jax.random.split(key, 3)
        top, bottom, left, right = erase_box(box_key, H, W)
        y, x = jnp.arange(H)[:, None], jnp.arange(W)
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        inside &= jax.random.bernoulli(draw_key, probability)
        noise = jax.random.normal(noise_key, (most, C), image.dtype)
        number = jnp.clip((y - top) * (right - left) + x - left, 0, most - 1)
        return jnp.where(inside[..., None], noise[number], image)

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
    """What Pillow makes of the image with this operation."""
    return _apply_ops(jax.tree.map(lambda x: x[None], op), image[None], fill)[0]


def _apply_ops(
    ops: Op, images: UInt8[Array, "B H W 3"], fill: tuple[int, int, int]
) -> UInt8[Array, "B H W 3"]:
    """One operation for each image."""

    def warp(op, image):
        return _warp(image, _matrix(op, image.shape), fill)

    images = _recolour(ops, images, jax.vmap(_table)(ops))  # those that take none of the following
    groups = [
        _Group(warp, _MOVES, _MOVES_SHARE, ops),
        _Group(_contrast, _CONTRASTS, _CONTRASTS_SHARE, ops),
        _Group(_sharpness, ("SharpnessIncreasing",), _OTHERS_SHARE, ops),
        _Group(_equalize, ("Equalize",), _OTHERS_SHARE, ops),
    ]
    for group in groups:
        images = jax.lax.fori_loop(0, group.usual_turns, group.turn, images)

    def one_more(i, images):
        for group in groups:
            images = group.turn(group.usual_turns + i, images)
        return images

    left = functools.reduce(jnp.maximum, [group.turns - group.usual_turns for group in groups])
    return jax.lax.fori_loop(0, left, one_more, images)


class _Group:
    """The images of a batch that take one of some operations, worked on in turns."""

    def __init__(
        self, function: Callable[[Op, Array], Array], names: Sequence[str], share: int, ops: Op
    ) -> None:
        self._function, self._ops = function, ops
        codes = jnp.array([_CODE[name] for name in names])
        which = jnp.any(ops.code[:, None] == codes, axis=1)
        self._size = B = which.size
        self._at_once = -(-B // share)
        self._count = jnp.sum(which)
        # Theirs first, then others that fill up the last turn.
        self._rows = jnp.pad(jnp.argsort(~which), (0, -B % self._at_once))
        expected = B * _APPLY_PROBABILITY * len(names) / len(RAND_AUGMENT_OPS)
        enough = min(B, expected + _USUAL_DEVIATIONS * math.sqrt(expected))
        self.usual_turns = math.ceil(enough / self._at_once)

    @property
    def turns(self) -> Int[Array, ""]:
        """How many it takes to reach all of them."""
        return -(-self._count // self._at_once)

    def turn(self, i: Int[Array, ""], images: UInt8[Array, "B H W 3"]) -> Array:
        """Applies `function(op, image)` to the next images; after the last one, to none."""
        start = i * self._at_once
        mine = jax.lax.dynamic_slice(self._rows, (start,), (self._at_once,))
        op = jax.tree.map(lambda x: x[mine], self._ops)
        changed = jax.vmap(self._function)(op, images[mine])
        # Rows beyond the batch are not written; no two are equal.
        number = start + jnp.arange(self._at_once)
        target = jnp.where(number < self._count, mine, self._size + number)
        return images.at[target].set(changed, mode="drop", unique_indices=True)


def _row_keys(key: PRNGKeyArray, rows: int) -> Array:
    return jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(rows))


class _Statistics(NamedTuple):
    """What the contrasts need to know of an image."""

    low: Int[Array, "3"]  # lowest value, per channel
    high: Int[Array, "3"]
    mean: Int[Array, ""]  # of the gray image, rounded


def _statistics(image: UInt8[Array, "H W 3"]) -> _Statistics:
    N = image.size // 3
    # One after the other: a GPU reduces neighbours well, and every third number badly.
    channels = [image[..., channel].astype(jnp.int32) for channel in range(3)]
    return _Statistics(
        low=jnp.stack([jnp.min(channel) for channel in channels]),
        high=jnp.stack([jnp.max(channel) for channel in channels]),
        mean=(2 * jnp.sum(_gray(image)) + N) // (2 * N),
    )


def _recolour(
    ops: Op, images: UInt8[Array, "B H W 3"], tables: UInt8[Array, "B 256 3"]
) -> UInt8[Array, "B H W 3"]:
    """Saturation for the images that take it, new values by the tables for the others."""
    mapped = jax.vmap(_mapped)(tables, images)
    factor = ops.argument[:, None, None, None]
    saturated = _blend(_gray(images)[..., None], images, factor).astype(jnp.uint8)
    is_color = (ops.code == _CODE["ColorIncreasing"])[:, None, None, None]
    return jnp.where(is_color, saturated, mapped)


def _mapped(table: UInt8[Array, "256 3"], image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    pixels = image.reshape(-1, 3).astype(jnp.int32)
    return jnp.take_along_axis(table, pixels, axis=0, mode="clip").reshape(image.shape)


def _contrast(op: Op, image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """AutoContrast or contrast."""
    return _mapped(_table(op, _statistics(image)), image)


def _table(op: Op, statistics: _Statistics | None = None) -> UInt8[Array, "256 3"]:
    """What becomes of every value, per channel.

    Args:
        op: one that maps values to values; of others the table changes nothing.
        statistics: of the image; without them, of the contrasts the table changes nothing.
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
    if statistics:
        curves["ContrastIncreasing"] = _blend(statistics.mean, value, op.argument)
    table = {name: jnp.broadcast_to(curve[:, None], (256, 3)) for name, curve in curves.items()}
    if statistics:
        table["AutoContrast"] = _stretched(statistics.low, statistics.high)
    identity = jnp.broadcast_to(value[:, None], (256, 3))
    names = [*RAND_AUGMENT_OPS, "Identity"]
    return jnp.stack([table.get(name, identity) for name in names])[op.code].astype(jnp.uint8)


def _stretched(low: Int[Array, "3"], high: Int[Array, "3"]) -> Int[Array, "256 3"]:
    """The values of AutoContrast; a channel of one value stays."""
    value = jnp.arange(256)[:, None]
    one_less = jnp.asarray(_autocontrast_rounding())[low, high]  # [3, 32]
    one_less = jnp.unpackbits(one_less, axis=-1).T.astype(jnp.int32)  # [256, 3]
    span = jnp.maximum(high - low, 1)
    stretched = jnp.clip((value - low) * 255 // span - one_less, 0, 255)
    return jnp.where(high > low, stretched, value)


def _equalize(op: Op, image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """Pillow's equalisation of each channel's histogram; an image of one value stays."""
    del op
    pixels = image.reshape(-1, 3)
    N = pixels.shape[0]
    histogram = _histogram(pixels)
    used = histogram > 0
    low, high = jnp.argmax(used, axis=0), 255 - jnp.argmax(used[::-1], axis=0)  # [3]
    step = (N - jnp.take_along_axis(histogram, high[None], axis=0)[0]) // 255
    below = jnp.cumsum(histogram, axis=0) - histogram
    table = jnp.minimum(255, (step // 2 + below) // jnp.maximum(step, 1))
    table = jnp.where((step > 0) & (high > low), table, jnp.arange(256)[:, None])
    return _mapped(table.astype(jnp.uint8), image)


def _histogram(pixels: UInt8[Array, "N 3"]) -> Int[Array, "256 3"]:
    """How often each value occurs."""
    part = (jnp.arange(pixels.shape[0]) % _PARTIAL_HISTOGRAMS)[:, None]
    parts = jnp.zeros((_PARTIAL_HISTOGRAMS, 256, 3), jnp.int32)
    return jnp.sum(parts.at[part, pixels.astype(jnp.int32), jnp.arange(3)].add(1), axis=0)


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


def _sharpness(op: Op, image: UInt8[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """Blends with Pillow's SMOOTH filter, which leaves the border pixels alone."""
    H, W, _ = image.shape
    wide = image.astype(jnp.int32)
    around = sum(wide[1 + i : H - 1 + i, 1 + j : W - 1 + j] for i in (-1, 0, 1) for j in (-1, 0, 1))
    weighted = around + 4 * wide[1:-1, 1:-1]  # 13 in all
    smooth = wide.at[1:-1, 1:-1].set((2 * weighted + 13) // 26)
    return _blend(smooth, image, op.argument).astype(jnp.uint8)


def _gray(image: UInt8[Array, "*B H W 3"]) -> Int[Array, "*B H W"]:
    """Pillow's luma."""
    red, green, blue = jnp.moveaxis(image.astype(jnp.int32), -1, 0)
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(first: Array | int, second: Array, factor: Array) -> Int[Array, "..."]:
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
    # A pixel as one number: sixteen loads for each instead of 48. The barrier has it made once, not
    # at each load.
    red, green, blue = jnp.moveaxis(image.astype(jnp.uint32), -1, 0)
    pixels = jax.lax.optimization_barrier((red | green << 8 | blue << 16).reshape(-1))

    def at(row, column):
        pixel = pixels.at[row * W + column].get(mode="promise_in_bounds")
        return (pixel[..., None] >> _SHIFTS & 255).astype(jnp.float32)

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
