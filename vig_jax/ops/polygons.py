"""Filling of polygons by COCO's rule. NumPy only."""

import numpy as np
from jaxtyping import Bool, Float

_SCALE = 5  # the boundary is followed on a grid of fifths of a pixel


def fill(
    points: Float[np.ndarray, "N 2"], height: int, width: int, corner: tuple[int, int] = (0, 0)
) -> Bool[np.ndarray, "h w"]:
    """Returns the mask of a polygon, the same pixels as pycocotools.

    Corners are rounded to fifths of a pixel. The boundary crosses the centre of a column of pixels
    at some heights; a pixel is set if an odd number of crossings lies above it.

    Args:
        points: corners x, y in pixels, closed from the last to the first. Parts outside of the
            mask are cut off.
        height: rows of the mask.
        width: columns of the mask.
        corner: left and top of the mask, to fill a part of an image: the pixels are those of the
            whole image there.
    """
    left, top = corner
    corners = np.trunc(points * _SCALE + 0.5).astype(np.int64)
    x, y = _boundary(corners, np.roll(corners, -1, 0))
    moved = np.flatnonzero(x[1:] != x[:-1])  # steps from one fifth of a column to the next
    column = np.minimum(x[moved], x[moved + 1]) - _SCALE * left
    row = np.minimum(y[moved], y[moved + 1]) - _SCALE * top
    inside = (column % _SCALE == _SCALE // 2) & (column >= 0) & (column < width * _SCALE)
    row = np.ceil(np.clip((row[inside] + 0.5) / _SCALE - 0.5, 0, height)).astype(np.int64)
    mask = np.zeros((width, height), bool)
    start = column[inside] // _SCALE * height + row
    if len(start):
        # An even number of crossings lies above the last pixel of these columns.
        columns = slice(start.min() // height, start.max() // height + 1)
        part = mask[columns]
        crossings = np.sort(start) - columns.start * height
        inside = np.arange(len(crossings) + 1) % 2 == 1  # between one crossing and the next
        runs = np.diff(crossings, prepend=0, append=part.size)
        part[...] = np.repeat(inside, runs).reshape(part.shape)
    return mask.T


def _boundary(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns x and y of all grid points on the sides, in their order.

    A side has a point for each step along its longer axis. The other coordinate is interpolated
    from the end with the lower coordinate, and rounded by truncation.
    """
    length = np.abs(end - start)
    along = np.where(length[:, 0] >= length[:, 1], 0, 1)  # the longer axis
    steps = length.max(1)
    rows = np.arange(len(start))
    reversed_side = start[rows, along] > end[rows, along]
    origin = np.where(reversed_side[:, None], end, start)
    other_end = np.where(reversed_side[:, None], start, end)
    slope = (other_end - origin)[rows, 1 - along] / np.maximum(steps, 1)
    side = np.repeat(rows, steps + 1)
    first = np.cumsum(steps + 1) - (steps + 1)
    step = np.arange(len(side)) - first[side]
    step = np.where(reversed_side[side], steps[side] - step, step)
    long = origin[side, along[side]] + step
    short = np.trunc(origin[side, 1 - along[side]] + slope[side] * step + 0.5).astype(np.int64)
    x_is_long = along[side] == 0
    return np.where(x_is_long, long, short), np.where(x_is_long, short, long)
