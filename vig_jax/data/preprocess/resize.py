"""Crops, resizes (bicubic) and flips in one kernel, with Pillow's pixels.

Pillow computes in integers, so its result can be reproduced exactly: weights of 22 bits, a pass
along each axis, rounded to uint8 in between. This kernel computes the same sums on an array [H, W,
3], for many rows at a time, where Pillow computes one pixel at a time. It needs numba (`pip install
-e '.[fast]'`), and is compared with the installed Pillow before it is used.
"""

import functools
import inspect
import logging
from typing import Any

import numpy as np
import PIL
from jaxtyping import Int32, UInt8
from PIL import Image

logger = logging.getLogger(__name__)

_BITS = 22  # fractional bits of the weights
_SUPPORT = 2.0  # of the cubic, in pixels
_TAPS = 4  # weights are padded to a multiple of this
_ROWS = 32  # computed together in the horizontal pass: four registers of AVX2

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels


@functools.cache
def why_not() -> str | None:
    """Returns the reason why `resize_box` cannot be used here, or None if it can.

    The first call in a process takes a second, and several if numba's cache is empty.
    """
    try:
        import numba  # noqa: F401
    except ModuleNotFoundError:
        return "numba is not installed (pip install -e '.[fast]')"
    except ImportError as error:  # incompatible versions
        return f"numba cannot be imported ({error})"
    noise = np.random.default_rng(0).integers(0, 256, (90, 70, 3), np.uint8)
    # Enlarging, reducing, and both orders of Pillow's passes.
    for box in ((0, 0, 70, 90), (3, 5, 20, 90), (1, 2, 65, 19), (8, 8, 16, 14)):
        theirs = Image.fromarray(noise).crop(box).resize((24, 24), Image.Resampling.BICUBIC)
        if not np.array_equal(resize_box(noise, box, 24, 24), np.asarray(theirs)):
            logger.warning(
                "Pillow %s is not supported by the fast resize; falling back to Pillow",
                PIL.__version__,
            )
            return f"Pillow {PIL.__version__} is not supported by the fast resize"
    return None


def resize_box(
    image: UInt8[np.ndarray, "H W 3"], box: Box, width: int, height: int, flip: bool = False
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """Returns the pixels of Pillow's `image.crop(box).resize((width, height), BICUBIC)`.

    Args:
        image: RGB.
        box: within the image.
        width: of the result, pixels.
        height: of the result, pixels.
        flip: exchange left and right. It costs nothing, because the weights are flipped.

    Returns:
        [height, width, 3].
    """
    left, top, right, bottom = box
    h, w = bottom - top, right - left
    horizontal, vertical = _kernels()
    result = np.ascontiguousarray(image[top:bottom, left:right])
    vertical_first = _vertical_first(w, h, width, height)
    if vertical_first:
        result = vertical(result, *_weights(h, height))
    if w != width or flip:
        result = horizontal(result, *_weights(w, width, flip))
    if h != height and not vertical_first:
        result = vertical(result, *_weights(h, height))
    return result


def _vertical_first(w: int, h: int, width: int, height: int) -> bool:
    """Returns whether Pillow resizes y first: from version 13 on, if it shrinks much more."""
    pillow = int(PIL.__version__.split(".")[0])
    return pillow >= 13 and h - height > max(0, 2 * (w - width))


@functools.lru_cache(maxsize=4096)  # sizes of crops recur: photographs have a few hundred pixels
def _weights(
    size: int, new_size: int, flip: bool = False
) -> tuple[Int32[np.ndarray, "n"], Int32[np.ndarray, "n k"]]:
    """Returns first pixel and weights of every new pixel, padded to a multiple of `_TAPS`."""
    scale = size / new_size
    stretch = max(scale, 1.0)
    support = _SUPPORT * stretch
    centre = (np.arange(new_size) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(int), 0)
    end = np.minimum((centre + support + 0.5).astype(int), size)
    taps = -(-int((end - first).max()) // _TAPS) * _TAPS
    position = first[:, None] + np.arange(taps)
    weight = _cubic((position - centre[:, None] + 0.5) * (1.0 / stretch))
    weight[position >= end[:, None]] = 0
    # Added in Pillow's order: another order may round differently.
    weight /= np.cumsum(weight, axis=1)[:, -1:]
    rounded = np.trunc(weight * (1 << _BITS) + np.copysign(0.5, weight))
    order = slice(None, None, -1 if flip else 1)
    return (
        np.ascontiguousarray(first[order], np.int32),
        np.ascontiguousarray(rounded[order], np.int32),
    )


def _cubic(x: np.ndarray) -> np.ndarray:
    """Evaluates Keys' cubic with a = -1/2, in Pillow's order."""
    a = -0.5
    x = np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@functools.cache
def _kernels() -> tuple[Any, Any]:
    """Compiles the passes along x and along y: (pixels, first, weights) to pixels."""
    import numba

    image = numba.types.Array(numba.uint8, 3, "C", readonly=True)  # writable ones, too
    result, first, weights = numba.uint8[:, :, ::1], numba.int32[::1], numba.int32[:, ::1]
    signature = result(image, first, weights)
    # Without the checks of annotations that tests add.
    passes = inspect.unwrap(_horizontal), inspect.unwrap(_vertical)
    try:
        x, y = (numba.njit(signature, cache=True, nogil=True)(function) for function in passes)
    except RuntimeError:  # no folder for a cache
        x, y = (numba.njit(signature, nogil=True)(function) for function in passes)
    return x, y


def _horizontal(image, first, weights):
    """Resizes along x, by blocks of rows: the pixels of a column share their weights."""
    H, W, _ = image.shape
    new_width, taps = weights.shape
    out = np.empty((H, new_width, 3), np.uint8)
    # Columns of a block by channel; the weights' padding may reach beyond the image.
    block = np.zeros((W + taps, 3, _ROWS), np.uint8)
    done = np.empty((new_width, 3, _ROWS), np.uint8)
    total = np.empty(_ROWS, np.int32)
    for begin in range(0, H, _ROWS):
        rows = min(_ROWS, H - begin)
        for row in range(rows):
            for x in range(W):
                for channel in range(3):
                    block[x, channel, row] = image[begin + row, x, channel]
        for x in range(new_width):
            for channel in range(3):
                for i in range(_ROWS):
                    total[i] = 1 << (_BITS - 1)
                for tap in range(0, taps, _TAPS):
                    at = first[x] + tap
                    w0, w1 = weights[x, tap], weights[x, tap + 1]
                    w2, w3 = weights[x, tap + 2], weights[x, tap + 3]
                    a, b = block[at, channel], block[at + 1, channel]
                    c, d = block[at + 2, channel], block[at + 3, channel]
                    for i in range(_ROWS):
                        total[i] += w0 * a[i] + w1 * b[i] + w2 * c[i] + w3 * d[i]
                for i in range(_ROWS):
                    done[x, channel, i] = min(max(total[i] >> _BITS, 0), 255)
        for row in range(rows):
            for x in range(new_width):
                for channel in range(3):
                    out[begin + row, x, channel] = done[x, channel, row]
    return out


def _vertical(image, first, weights):
    """Resizes along y; the rows are contiguous already."""
    H, W, _ = image.shape
    new_height, taps = weights.shape
    out = np.empty((new_height, W, 3), np.uint8)
    flat, lines = out.reshape(new_height, W * 3), image.reshape(H, W * 3)
    total = np.empty(W * 3, np.int32)
    for y in range(new_height):
        total[:] = 1 << (_BITS - 1)
        for tap in range(0, taps, _TAPS):
            at = first[y] + tap
            w0, w1 = weights[y, tap], weights[y, tap + 1]
            w2, w3 = weights[y, tap + 2], weights[y, tap + 3]
            # The padding's weights are 0 for any row.
            a, b = lines[min(at, H - 1)], lines[min(at + 1, H - 1)]
            c, d = lines[min(at + 2, H - 1)], lines[min(at + 3, H - 1)]
            for i in range(W * 3):
                total[i] += w0 * a[i] + w1 * b[i] + w2 * c[i] + w3 * d[i]
        for i in range(W * 3):
            flat[y, i] = min(max(total[i] >> _BITS, 0), 255)
    return out
