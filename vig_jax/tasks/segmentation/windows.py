"""Sliding windows over images, and the logits of the windows at the pixels of the original image.

An image of `size` lies at the top left of a canvas. Windows of one shape cover it. Their logits
are resized to the window's size, summed on the image, divided by the number of windows at each
pixel, and resized to the original image, all bilinearly and with pixel centres (mmseg,
models/segmentors/encoder_decoder.py). Each of these steps is linear and acts on rows and columns
separately. So the logits of any rows of the original image are two matrix products with the small
logits of the windows, and neither the canvas nor the original image ever holds logits.

Shapes are static and sizes are dynamic: one program serves images of different sizes.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Shaped


@dataclasses.dataclass(frozen=True)
class Axis:
    """The windows along one axis of a canvas.

    Attributes:
        side: of the canvas in pixels.
        crop: the largest side of a window; a smaller canvas is one window.
        stride: pixels between windows.
    """

    side: int
    crop: int
    stride: int

    @property
    def window(self) -> int:
        """The side of the windows."""
        return min(self.side, self.crop)

    @property
    def count(self) -> int:
        """The number of windows."""
        return math.ceil((self.side - self.window) / self.stride) + 1

    def start(self, size: Int[Array, ""], number: Int[Array, "*n"]) -> Int[Array, "*n"]:
        """Returns where windows start in an image of `size`: the last is pulled back inside."""
        return jnp.minimum(number * self.stride, jnp.maximum(size - self.window, 0))


@dataclasses.dataclass(frozen=True)
class Grid:
    """The windows of a canvas: rows and columns of them."""

    rows: Axis
    columns: Axis

    @property
    def numbers(self) -> list[tuple[int, int]]:
        """Row and column of each window, rows first."""
        return [(i, j) for i in range(self.rows.count) for j in range(self.columns.count)]


def take_window(
    image: Shaped[Array, "H W C"],
    size: Int[Array, "2"],
    number: Int[Array | np.ndarray, "2"],
    grid: Grid,
    *,
    flipped: bool,
) -> Shaped[Array, "h w C"]:
    """Returns one window of an image, or of its mirror image.

    Args:
        image: a canvas with the image at its top left.
        size: height and width of the image.
        number: row and column of the window.
        grid: of the canvas.
        flipped: take the window from the image that is flipped from left to right.
    """
    number = jnp.asarray(number)
    top, left = grid.rows.start(size[0], number[0]), grid.columns.start(size[1], number[1])
    if flipped:
        left = size[1] - grid.columns.window - left
    shape = (grid.rows.window, grid.columns.window, image.shape[2])
    window = jax.lax.dynamic_slice(image, (top, left, 0), shape)
    return window[:, ::-1] if flipped else window


def bilinear_taps(
    positions: Int[Array, "*n"], source: Int[Array, ""] | int, target: Int[Array, ""] | int
) -> tuple[Int[Array, "*n"], Int[Array, "*n"], Float[Array, "*n"]]:
    """Returns the pixels that a bilinear resize reads, as torch with align_corners=False.

    Args:
        positions: pixels of the result, 0 to `target` - 1.
        source: size before, at most 16,384 as `target`.
        target: size after.

    Returns:
        First pixel, second pixel, and the weight of the second.
    """
    # In integers: exact, and the same for all dtypes.
    shifted = jnp.maximum((2 * positions + 1) * source - target, 0)
    first = shifted // (2 * target)
    dtype = jnp.result_type(float)
    weight = (shifted - first * (2 * target)).astype(dtype) / jnp.asarray(2 * target, dtype)
    return first, jnp.minimum(first + 1, source - 1), weight


def sampling(
    axis: Axis,
    cells: int,
    size: Int[Array, ""],
    original: Int[Array, ""],
    positions: Int[Array, "P"],
) -> Float[Array, "P n cells"]:
    """Returns the weights of the windows' logits at positions of the original image, for one axis.

    Args:
        axis: the n windows of the canvas.
        cells: logits of a window along this axis.
        size: of the image on the canvas.
        original: size of the original image.
        positions: pixels of the original image; others get the weights of the nearest one.
    """
    positions = jnp.clip(positions, 0, original - 1)
    first, second, weight = bilinear_taps(positions, size, original)
    starts = axis.start(size, jnp.arange(axis.count))

    def at(pixels: Int[Array, "P"]) -> Float[Array, "P n cells"]:
        inside = pixels[:, None] - starts
        covered = (inside >= 0) & (inside < axis.window)
        low, high, part = bilinear_taps(jnp.clip(inside, 0, axis.window - 1), cells, axis.window)
        share = covered.astype(weight.dtype)
        share = share / jnp.sum(share, axis=1, keepdims=True)
        cell = jnp.arange(cells)
        of_low = jnp.where(cell == low[..., None], (share * (1 - part))[..., None], 0)
        return of_low + jnp.where(cell == high[..., None], (share * part)[..., None], 0)

    of_second = weight[:, None, None]
    return (1 - of_second) * at(first) + of_second * at(second)


def resample(
    windows: Float[Array, "m n h w K"],
    rows: Float[Array, "R m h"],
    columns: Float[Array, "C n w"],
) -> Float[Array, "R C K"]:
    """Returns logits at rows and columns of the original image.

    Args:
        windows: logits of m rows and n columns of windows.
        rows: the weights from `sampling` for the rows.
        columns: the same for the columns.
    """
    dtype = jnp.promote_types(windows.dtype, jnp.float32)
    windows, rows, columns = windows.astype(dtype), rows.astype(dtype), columns.astype(dtype)
    product = functools.partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    return product("cnw,rnwk->rck", columns, product("rmh,mnhwk->rnwk", rows, windows))
