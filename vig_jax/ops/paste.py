"""Masks between a box and its image, on the host. NumPy only."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

Span = tuple[int, np.ndarray]  # first pixel, and the positions of the pixels in cells of the mask


def cut_to_box(
    mask: Shaped[np.ndarray, "h w"], box: Float[np.ndarray, "4"], side: int = 112
) -> UInt8[np.ndarray, "s s"]:
    """Returns the part of a mask inside a box, averaged over `side` x `side` cells.

    Args:
        mask: zeros and ones of the size of the image.
        box: x1, y1, x2, y2 in pixels, with a positive area.
        side: cells of the result.

    Returns:
        The share of a cell that the mask covers, 0 to 255. Cells outside of the image have 0.
    """
    if mask.flags.fnc:  # in Fortran order: sums along the other axis first are faster
        return cut_to_box(mask.T, box[[1, 0, 3, 2]], side).T
    by_rows = _averages(mask, box[1], box[3], side)
    shares = _averages(by_rows.T, box[0], box[2], side).T
    return np.round(255 * shares).astype(np.uint8)


class Part(NamedTuple):
    """A part of an image.

    Attributes:
        values: of its pixels.
        top: row of its first pixel in the image.
        left: column of its first pixel in the image.
    """

    values: Float[np.ndarray, "h w"]
    top: int
    left: int


def paste_part(
    mask: Float[np.ndarray, "m m"],
    box: Float[np.ndarray, "4"],
    height: int,
    width: int,
    library: str = "mm",
) -> Part:
    """Returns a mask of a box at the pixels of the image that the box reaches.

    Args:
        mask: probabilities over the box.
        box: x1, y1, x2, y2 in pixels of the image. Without area, the part is empty.
        height: rows of the image.
        width: columns of the image.
        library: "mm": bilinear at the centres of pixels, in a window of one pixel around the box
            (mmdet, detectron2). "tv": the box is enlarged by a border of zeros, moved to whole
            pixels, and the mask resized to it (torchvision).

    Returns:
        Probabilities, which are 0 at all other pixels.
    """
    box = np.asarray(box, np.float64)
    if library == "tv":
        spans = _whole_pixels(box, len(mask), (width, height))
    elif box[2] > box[0] and box[3] > box[1]:
        spans = [
            _centres(low, high, length, len(mask))
            for low, high, length in zip(box[:2], box[2:], (width, height), strict=True)
        ]
    else:
        return Part(np.zeros((0, 0), mask.dtype), 0, 0)
    (left, columns), (top, rows) = spans
    return Part(_interpolate(_interpolate(mask.T, columns).T, rows), top, left)


def paste(
    mask: Float[np.ndarray, "m m"],
    box: Float[np.ndarray, "4"],
    height: int,
    width: int,
    library: str = "mm",
) -> Float[np.ndarray, "h w"]:
    """Returns `paste_part` as a map of the whole image; compare it with 0.5."""
    image = np.zeros((height, width), mask.dtype)
    part, top, left = paste_part(mask, box, height, width, library)
    image[top : top + part.shape[0], left : left + part.shape[1]] = part
    return image


def _averages(rows: np.ndarray, low: float, high: float, cells: int) -> np.ndarray:
    """Returns the means over equal cells from `low` to `high` along the first axis.

    The difference of two sums up to the edges of a cell is its content: no products with matrices.
    """
    dtype = np.int32 if rows.dtype.kind in "bui" else np.float64
    sums = np.zeros((len(rows) + 1, *rows.shape[1:]), dtype)
    np.cumsum(rows, axis=0, out=sums[1:])
    edges = np.clip(np.linspace(low, high, cells + 1), 0, len(rows))
    before = np.minimum(edges.astype(np.int64), len(rows) - 1)
    share = (edges - before)[:, None]
    up_to_edges = sums[before] * (1 - share) + sums[before + 1] * share
    return np.diff(up_to_edges, axis=0) * (cells / (high - low))


def _centres(low: float, high: float, length: int, cells: int) -> Span:
    """Returns the span of the centres of pixels around `low` to `high`."""
    first = int(np.clip(np.floor(low) - 1, 0, length))
    last = int(np.clip(np.ceil(high) + 1, first, length))
    return first, (np.arange(first, last) + 0.5 - low) / (high - low) * cells - 0.5


def _whole_pixels(box: np.ndarray, cells: int, lengths: tuple[int, int]) -> list[Span]:
    """Returns the spans of torchvision's rule for both axes."""
    middle, half = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    half = half * ((cells + 2) / cells)
    low, high = (middle - half).astype(np.int64), (middle + half).astype(np.int64)
    spans = []
    for axis, length in enumerate(lengths):
        pixels = max(int(high[axis] - low[axis]) + 1, 1)
        position = np.maximum((np.arange(pixels) + 0.5) * ((cells + 2) / pixels) - 0.5, 0)
        position = np.minimum(position, cells + 1) - 1  # the border is at -1 and `cells`
        first, last = max(int(low[axis]), 0), min(int(high[axis]) + 1, length)
        spans.append((first, position[first - low[axis] : max(last, first) - low[axis]]))
    return spans


def _interpolate(rows: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns rows at fractional positions, linearly; zeros lie around them."""
    padded = np.zeros((len(rows) + 3, rows.shape[1]), rows.dtype)
    padded[1:-2] = rows
    places = np.clip(positions, -1, len(rows)) + 1
    low = places.astype(np.int64)
    share = (places - low).astype(rows.dtype)[:, None]
    return (1 - share) * padded[low] + share * padded[low + 1]
