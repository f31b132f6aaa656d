"""Masks of objects, cut to their boxes."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from vig_jax.data.preprocess.geometry import View
from vig_jax.ops import rle
from vig_jax.ops.paste import cut_to_box
from vig_jax.ops.polygons import fill

Polygons = Sequence[Float[np.ndarray, "k 2"]]


def cut_mask(
    mask: Polygons | rle.Rle | Bool[np.ndarray, "H W"],
    view: View,
    box: Float32[np.ndarray, "4"],
    side: int,
) -> UInt8[np.ndarray, "s s"]:
    """Returns the mask of an object in a view, cut to its box.

    Polygons are filled at the size of the view. Other masks are resized to it by their nearest
    pixels. With a flip the result is the mirror image of that without one.

    Args:
        mask: in pixels of the image.
        view: without a flip, the box is also of the view without a flip.
        box: left, top, right, bottom in pixels of the view, within it, with a positive area.
        side: cells of the result.

    Returns:
        The share of each cell that the object covers, 0 to 255.
    """
    x0, y0, x1, y1 = box.tolist()
    height, width = view.shape
    if view.flip:
        x0, x1 = width - x1, width - x0
    left, top = math.floor(x0), math.floor(y0)
    right, bottom = min(math.ceil(x1), width), min(math.ceil(y1), height)
    part = _part(mask, view, (left, top, right, bottom))
    cut = cut_to_box(part, np.array([x0 - left, y0 - top, x1 - left, y1 - top]), side)
    return cut[:, ::-1] if view.flip else cut


def _part(mask: Any, view: View, window: tuple[int, int, int, int]) -> Bool[np.ndarray, "h w"]:
    """Returns the mask in a window of the view without its flip."""
    left, top, right, bottom = window
    straight = dataclasses.replace(view, flip=False)
    if isinstance(mask, rle.Rle | np.ndarray):
        bitmap = rle.decode(mask) if isinstance(mask, rle.Rle) else mask
        columns = straight.nearest(axis=0)[0][left:right]
        rows = straight.nearest(axis=1)[0][top:bottom]
        return bitmap[rows[:, None], columns]
    height, width = bottom - top, right - left
    parts = [fill(straight.points(polygon), height, width, (left, top)) for polygon in mask]
    return functools.reduce(np.logical_or, parts)
