"""Resizing with OpenCV's pixels: bilinear for uint8 images, nearest for masks of labels.

mmsegmentation and mmdetection resize with OpenCV. Its bilinear filter does not antialias, and
computes in integers with weights of 11 bits, so its result can be reproduced exactly (OpenCV 4.10
and 5.0). Only the part of the result that a crop shows is computed. There are two implementations
with the same pixels: a kernel that needs numba (`pip install -e '.[fast]'`), and NumPy.
"""

import functools
import inspect
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int, Int32, UInt8

_ONE = 2048  # a weight of 1
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom excluded


@functools.cache
def why_not() -> str | None:
    """Returns the reason why the kernels cannot be used here, or None if they can."""
    try:
        import numba  # noqa: F401
    except ImportError as error:
        return f"numba cannot be imported ({error}): pip install -e '.[fast]'"
    return None


class Taps(NamedTuple):
    """The two pixels along an axis that each new pixel is mixed from, and their weights."""

    first: Int32[np.ndarray, "n"]
    second: Int32[np.ndarray, "n"]
    first_weight: Int32[np.ndarray, "n"]  # in units of 1 / 2048
    second_weight: Int32[np.ndarray, "n"]


def nearest(size: int, new_size: int, positions: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
    """Returns the pixel that OpenCV's INTER_NEAREST takes for new pixels along an axis.

    It is floor(i / (new_size / size)) in float64, which is not always floor(i size / new_size).

    Args:
        size: pixels along the axis.
        new_size: pixels along the axis of the result.
        positions: i, the new pixels.
    """
    pixels = np.floor(positions * (1.0 / (new_size / size))).astype(np.int64)
    return np.minimum(pixels, size - 1)


def bilinear(size: int, new_size: int, positions: Int[np.ndarray, "n"], *, vertical: bool) -> Taps:
    """Returns the taps of OpenCV's INTER_LINEAR for uint8.

    Args:
        size: pixels along the axis.
        new_size: pixels along the axis of the result.
        positions: the new pixels.
        vertical: beyond the border, the passes differ. Along x the border pixel has all the weight.
            Along y both weights stay, and both belong to the border pixel.
    """
    scale = 1.0 / (new_size / size)
    position = ((positions + 0.5) * scale - 0.5).astype(np.float32)
    floor = np.floor(position)
    first = floor.astype(np.int32)
    share = position - floor
    if not vertical:
        share[(first < 0) | (first >= size - 1)] = 0
    weights = [np.rint(weight * np.float32(_ONE)) for weight in (np.float32(1) - share, share)]
    pixels = [np.minimum(np.maximum(pixel, 0), size - 1) for pixel in (first, first + 1)]
    return Taps(pixels[0], pixels[1], *(weight.astype(np.int32) for weight in weights))


def resize_window(
    image: UInt8[np.ndarray, "H W 3"],
    size: tuple[int, int],
    window: Box,
    *,
    flip: bool = False,
    fast: bool = True,
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a window of OpenCV's `resize(image, size, interpolation=INTER_LINEAR)`.

    Args:
        image: of any number of pixels, at least 1.
        size: width and height of the resized image, pixels.
        window: in pixels of the resized image, within it.
        flip: exchange left and right of the window. It costs nothing.
        fast: use the kernel if numba is installed. The pixels are the same.

    Returns:
        [height, width, 3] of the window.
    """
    left, top, right, bottom = window
    height, width, _ = image.shape
    columns = np.arange(left, right)
    x = bilinear(width, size[0], columns[::-1] if flip else columns, vertical=False)
    y = bilinear(height, size[1], np.arange(top, bottom), vertical=True)
    if fast and why_not() is None:
        return _compiled("_mix")(np.ascontiguousarray(image), *x, *y)
    used = np.unique(np.stack([y.first, y.second]))
    lines = image[used].astype(np.int32)
    rows = lines[:, x.first] * x.first_weight[:, None]
    rows = (rows + lines[:, x.second] * x.second_weight[:, None]) >> 4
    first, second = (np.searchsorted(used, pixels) for pixels in (y.first, y.second))
    above = (rows[first] * y.first_weight[:, None, None]) >> 16
    below = (rows[second] * y.second_weight[:, None, None]) >> 16
    return ((above + below + 2) >> 2).astype(np.uint8)


def take_labels(
    mask: UInt8[np.ndarray, "H W"],
    rows: Int[np.ndarray, "h"],
    columns: Int[np.ndarray, "w"],
    lookup: UInt8[np.ndarray, "256"],
    *,
    fast: bool = True,
) -> tuple[UInt8[np.ndarray, "h w"], Int[np.ndarray, "256"]]:
    """Takes rows and columns of a mask, maps their values and counts the results.

    Args:
        mask: raw labels.
        rows: of the mask, one for every row of the result.
        columns: likewise.
        lookup: the new value of every value.
        fast: use the kernel if numba is installed. The result is the same.

    Returns:
        The new labels, and the number of pixels of each value, int64.
    """
    if fast and why_not() is None:
        return _compiled("_take")(np.ascontiguousarray(mask), rows, columns, lookup)
    labels = lookup[mask[rows][:, columns]]
    return labels, np.bincount(labels.ravel(), minlength=256)


def compile_kernels() -> None:
    """Compiles the kernels; numba must be installed."""
    for name in ("_mix", "_take"):
        _compiled(name)


@functools.cache
def _compiled(name: str) -> Any:
    """Compiles a kernel."""
    import numba

    image, mask, lookup, taps, pixels = (
        numba.types.Array(kind, axes, "C", readonly=True)  # writable ones, too
        for kind, axes in (
            *((numba.uint8, axes) for axes in (3, 2, 1)),
            *((numba.int32, 1), (numba.int64, 1)),
        )
    )
    signatures = {
        "_mix": numba.uint8[:, :, ::1](image, *[taps] * 8),
        "_take": numba.types.Tuple((numba.uint8[:, ::1], numba.int64[::1]))(
            mask, pixels, pixels, lookup
        ),
    }
    # Without the checks of annotations that tests add.
    function = inspect.unwrap(globals()[name])
    try:
        return numba.njit(signatures[name], cache=True, nogil=True)(function)
    except RuntimeError:  # no folder for a cache
        return numba.njit(signatures[name], nogil=True)(function)


def _mix(image, x0, x1, a0, a1, y0, y1, b0, b1):
    """Resizes along x the rows that are needed, and mixes two of them for each new row."""
    w, h = len(x0), len(y0)
    out = np.empty((h, w, 3), np.uint8)
    flat = out.reshape(h, w * 3)
    # Neighbouring rows differ in parity, so that two buffers hold the rows of one new row.
    resized = np.empty((2, w * 3), np.int16)
    held = np.full(2, -1, np.int32)
    for y in range(h):
        for row in (y0[y], y1[y]):
            slot = row & 1
            if held[slot] == row:
                continue
            held[slot] = row
            line, into = image[row], resized[slot]
            for x in range(w):
                p, q, a, b = x0[x], x1[x], a0[x], a1[x]
                into[3 * x] = (line[p, 0] * a + line[q, 0] * b) >> 4
                into[3 * x + 1] = (line[p, 1] * a + line[q, 1] * b) >> 4
                into[3 * x + 2] = (line[p, 2] * a + line[q, 2] * b) >> 4
        above, below = resized[y0[y] & 1], resized[y1[y] & 1]
        a, b = np.int16(b0[y]), np.int16(b1[y])
        for i in range(w * 3):
            flat[y, i] = (((above[i] * a) >> 16) + ((below[i] * b) >> 16) + 2) >> 2
    return out


def _take(mask, rows, columns, lookup):
    """Takes pixels and counts, in four histograms: neighbours are mostly alike."""
    h, w = len(rows), len(columns)
    out = np.empty((h, w), np.uint8)
    parts = np.zeros((4, 256), np.int64)
    for y in range(h):
        line = mask[rows[y]]
        for x in range(w):
            label = lookup[line[columns[x]]]
            out[y, x] = label
            parts[x & 3, label] += 1
    return out, parts[0] + parts[1] + parts[2] + parts[3]
