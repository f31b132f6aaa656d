"""Run-length encoded masks, as in COCO's annotations and results. NumPy only.

The pixels of a mask are taken column by column. `counts` are the lengths of runs, of zeros first,
alternately of zeros and ones.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from vig_jax.errors import DataSetError
from vig_jax.ops.polygons import fill


class Rle(NamedTuple):
    """A mask as runs.

    Attributes:
        height: rows.
        width: columns.
        counts: lengths of runs; their sum is height times width.
    """

    height: int
    width: int
    counts: Int[np.ndarray, " N"]


def encode(mask: Shaped[np.ndarray, "h w"]) -> Rle:
    """Returns the runs of a mask; values that are not zero are ones."""
    flat = np.asarray(mask, bool).ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=flat.size)
    if flat.size and flat[0]:
        counts = np.concatenate([[0], counts])
    height, width = mask.shape
    return Rle(height, width, counts)


def encode_part(
    part: Shaped[np.ndarray, "h w"], top: int, left: int, height: int, width: int
) -> Rle:
    """Returns the runs of a mask that is zero outside of a part.

    Args:
        part: values that are not zero are ones.
        top: row of its first pixel in the mask.
        left: column of its first pixel in the mask.
        height: rows of the mask.
        width: columns of the mask.

    Returns:
        The same as `encode` of the whole mask. The time depends on the part alone.
    """
    padded = np.zeros((part.shape[1], part.shape[0] + 2), bool)
    padded[:, 1:-1] = np.asarray(part, bool).T
    column, row = np.nonzero(padded[:, 1:] != padded[:, :-1])
    edges = (left + column) * height + top + row  # starts and ends of runs within a column
    joined = np.flatnonzero(edges[1:-1:2] == edges[2::2])  # a run continues in the next column
    edges = np.delete(edges, np.concatenate([2 * joined + 1, 2 * joined + 2]))
    counts = np.diff(edges, prepend=0, append=height * width)
    return Rle(height, width, counts[:-1] if len(edges) and counts[-1] == 0 else counts)


def decode(rle: Rle) -> Bool[np.ndarray, "h w"]:
    """Returns the mask of runs."""
    values = np.arange(len(rle.counts)) % 2 == 1
    return np.repeat(values, rle.counts).reshape(rle.width, rle.height).T


def to_string(rle: Rle) -> str:
    """Returns the counts in COCO's compressed form.

    From the fourth on, a count is stored as the difference to the count two before. A number is
    five bits a character, low ones first, with a bit that says whether more follow, plus 48.
    """
    counts = rle.counts.astype(np.int64)
    counts[3:] -= rle.counts[1:-2]
    characters = []
    for number in counts.tolist():
        more = True
        while more:
            bits = number & 31
            number >>= 5
            more = number != (-1 if bits & 16 else 0)
            characters.append(chr(48 + bits + 32 * more))
    return "".join(characters)


def from_string(text: str | bytes, height: int, width: int) -> Rle:
    """Returns the runs of COCO's compressed form.

    Raises:
        DataSetError: the counts are no such string, or do not fill the mask.
    """
    data = text.encode() if isinstance(text, str) else text
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero((codes & 32) == 0)
    if not len(codes) or np.any((codes < 0) | (codes > 63)) or not (codes[-1] & 32) == 0:
        raise DataSetError(
            f"RLE counts {data[:40]!r} are no compressed runs: use what pycocotools' encode writes"
        )
    first = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, ends - first + 1)
    numbers = np.add.reduceat((codes & 31) << (5 * np.minimum(place, 11)), first)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * np.minimum(place[ends] + 1, 12)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return _checked(Rle(height, width, numbers))


def from_coco(segmentation: Any, height: int, width: int) -> Rle:
    """Returns the mask of the field `segmentation` of a COCO annotation.

    Args:
        segmentation: a list of polygons, each a list x, y, x, y, ... in pixels, which are one
            object; or a mapping with `size` and `counts`, compressed or as a list.
        height: rows of the image.
        width: columns of the image.

    Raises:
        DataSetError: the field has another form, another size, or a polygon with fewer than three
            points.
    """
    if isinstance(segmentation, Mapping) and {"size", "counts"} <= set(segmentation):
        if tuple(segmentation["size"]) != (height, width):
            raise DataSetError(
                f"the mask has size {list(segmentation['size'])}; it must be that of the image, "
                f"{[height, width]}: correct the annotation"
            )
        counts = segmentation["counts"]
        if isinstance(counts, str | bytes):
            return from_string(counts, height, width)
        return _checked(Rle(height, width, np.asarray(counts, np.int64)))
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str) or not segmentation:
        raise DataSetError(
            f"segmentation {segmentation!r:.60} must be a list of polygons, or `size` and `counts`"
        )
    mask = np.zeros((height, width), bool)
    for polygon in segmentation:
        points = np.asarray(polygon, np.float64)
        if points.ndim != 1 or points.size < 6 or points.size % 2:
            raise DataSetError(
                f"polygon {polygon!r:.60} must be a list of at least three points x, y: remove the "
                "annotation or correct it"
            )
        mask |= fill(points.reshape(-1, 2), height, width)
    return encode(mask)


def area(rle: Rle) -> int:
    """Returns the number of ones."""
    return int(rle.counts[1::2].sum())


def bounding_box(rle: Rle) -> tuple[int, int, int, int]:
    """Returns left, top, width and height of the ones in pixels; zeros for an empty mask."""
    ends = np.cumsum(rle.counts)
    starts, stops = ends[: len(ends) // 2 * 2 : 2], ends[1::2]
    starts, last = starts[stops > starts], stops[stops > starts] - 1
    if not len(starts):
        return 0, 0, 0, 0
    left, right = int(starts[0]) // rle.height, int(last[-1]) // rle.height
    if np.any(starts // rle.height != last // rle.height):  # a run reaches into the next column
        top, bottom = 0, rle.height - 1
    else:
        top, bottom = int((starts % rle.height).min()), int((last % rle.height).max())
    return left, top, right + 1 - left, bottom + 1 - top


def iou(
    detections: Sequence[Rle], truth: Sequence[Rle], is_crowd: Sequence[bool] | None = None
) -> Float[np.ndarray, "D G"]:
    """Returns the intersection over union of each pair of masks.

    Args:
        detections: masks of one image.
        truth: masks of the same image.
        is_crowd: for each mask of `truth`, whether the divisor is the area of the detection
            instead of the union, as for crowds. None: for no mask.
    """
    shares = np.zeros((len(detections), len(truth)))
    for j, other in enumerate(truth):
        edges = np.concatenate([[0], np.cumsum(other.counts)])
        ones = np.concatenate([[0], np.cumsum(other.counts * (np.arange(len(other.counts)) % 2))])
        for i, found in enumerate(detections):
            ends = np.cumsum(found.counts)[: len(found.counts) // 2 * 2]
            before = np.interp(ends, edges, ones)  # ones of `other` before each edge of `found`
            shared = before[1::2].sum() - before[::2].sum()
            crowd = is_crowd is not None and is_crowd[j]
            union = area(found) + (0 if crowd else area(other) - shared)
            shares[i, j] = shared / union if union else 0.0
    return shares


def _checked(rle: Rle) -> Rle:
    pixels = rle.height * rle.width
    if np.any(rle.counts < 0) or rle.counts.sum() != pixels:
        raise DataSetError(
            f"RLE counts add up to {rle.counts.sum()}; they must be positive and fill the "
            f"{rle.height} x {rle.width} = {pixels} pixels of the mask: correct the annotation"
        )
    return rle
