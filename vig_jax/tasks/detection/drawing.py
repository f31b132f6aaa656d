"""Drawings of objects: masks, boxes, names and scores over an image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Int32, UInt8
from PIL import Image

from vig_jax.data.dataset import GroundTruth
from vig_jax.figures import DPI, drawable, save_figure
from vig_jax.metrics.coco_matching import Found
from vig_jax.ops import rle
from vig_jax.tasks.segmentation.drawing import Palette, default_palette, label_name

_OPACITY = 0.45  # of a mask over the image
_LETTER = 0.62  # width of a letter over the size of the font
_LINE = 1.45  # height of a line over the size of the font
_OTHERS = 12  # colours of the objects of a single class
_LONGEST_NAME = 20
_SMALLEST, _LARGEST = 512, 2048  # pixels, of the longer side of a drawing
_FINE = 320  # pixels, of the longer side of a small image under masks
_PIXELS_PER_POINT = 120  # of the longer side, for the size of the font


class Objects(NamedTuple):
    """Objects on an image that is drawn.

    Attributes:
        boxes: x1, y1, x2, y2 in pixels of the drawn image.
        scores: 1 for true objects.
        labels: classes.
        masks: None: there are boxes alone.
    """

    boxes: Float[np.ndarray, "n 4"]
    scores: Float[np.ndarray, "n"]
    labels: Int32[np.ndarray, "n"]
    masks: Bool[np.ndarray, "n h w"] | None


def objects_at(
    found: Found, chosen: Int[np.ndarray, "m"], size: tuple[int, int], shape: tuple[int, int]
) -> Objects:
    """Returns some objects of a stored image at the size at which it is drawn.

    Args:
        found: all objects of the stored image.
        chosen: numbers of the objects to return.
        size: height and width of the stored image, pixels.
        shape: height and width of the drawn image, pixels.
    """
    ratios = np.array([shape[1] / size[1], shape[0] / size[0]])
    masks = None
    if found.masks is not None:
        rows, columns = (
            (2 * np.arange(small) + 1) * whole // (2 * small)
            for small, whole in zip(shape, size, strict=True)
        )
        masks = np.zeros((len(chosen), *shape), bool)
        for i, number in enumerate(chosen.tolist()):
            masks[i] = rle.decode(found.masks[number])[rows][:, columns]
    return Objects(
        boxes=found.boxes[chosen] * np.tile(ratios, 2),
        scores=found.scores[chosen],
        labels=found.labels[chosen],
        masks=masks,
    )


def true_objects(
    truth: GroundTruth, chosen: Int[np.ndarray, "m"], shape: tuple[int, int]
) -> Objects:
    """Returns some annotated objects at the size of the drawn image; see `objects_at`."""
    every = Found(truth.boxes, np.ones(len(truth.boxes)), truth.labels, truth.masks)
    return objects_at(every, chosen, truth.size[::-1], shape)


def colours_of(objects: Objects, palette: Palette) -> UInt8[np.ndarray, "n 3"]:
    """Returns the colours of the classes; if there is one class only, those of the objects vary."""
    if len(palette) > 1:
        return np.array(palette, np.uint8)[objects.labels]
    table = np.array(default_palette(_OTHERS), np.uint8)
    return table[np.arange(len(objects.labels)) % _OTHERS]


def mask_overlay(
    image: UInt8[np.ndarray, "h w 3"],
    masks: Bool[np.ndarray, "n h w"],
    colours: UInt8[np.ndarray, "n 3"],
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image under translucent masks with opaque borders, the first mask on top."""
    mixed = image.astype(np.float32)
    for mask, colour in zip(masks[::-1], colours[::-1], strict=True):
        inside = mask.copy()
        inside[1:] &= mask[:-1]
        inside[:-1] &= mask[1:]
        inside[:, 1:] &= mask[:, :-1]
        inside[:, :-1] &= mask[:, 1:]
        mixed[mask] = (1 - _OPACITY) * mixed[mask] + _OPACITY * colour.astype(np.float32)
        mixed[mask & ~inside] = colour
    return np.rint(mixed).astype(np.uint8)


def draw_objects(
    axes: Any,
    image: UInt8[np.ndarray, "h w 3"],
    objects: Objects,
    class_names: Sequence[str],
    palette: Palette,
    *,
    pixels: float = 1.0,
    fontsize: float = 7.0,
    scores: bool = True,
) -> None:
    """Draws an image with masks, boxes, and the name and score in percent of each object.

    Names are left out where there is no room, and if there is one class only.

    Args:
        axes: of Matplotlib.
        image: to draw.
        objects: at the size of the image, those with high scores first.
        class_names: of the labels; others are numbered.
        palette: colours of the labels.
        pixels: of the image per point of the figure, which is 1/72 inch.
        fontsize: of the names, points.
        scores: whether scores follow the names.
    """
    from matplotlib.patches import Rectangle

    height, width = image.shape[:2]
    colours = colours_of(objects, palette)
    if objects.masks is not None:
        times = max(1, _FINE // max(height, width))  # repeated pixels make borders thin
        image, masks = _repeated(image, times), objects.masks
        masks = _repeated(masks.transpose(1, 2, 0), times).transpose(2, 0, 1)
        image = mask_overlay(image, masks, colours)
    axes.imshow(image, interpolation="nearest", extent=(0, width, height, 0))
    axes.set(xticks=(), yticks=(), xlim=(0, width), ylim=(height, 0))
    taken: list[np.ndarray] = []
    for i, (left, top, right, bottom) in enumerate(objects.boxes.tolist()):
        colour = colours[i] / 255
        axes.add_patch(
            Rectangle(
                (left, top), right - left, bottom - top, fill=False, color=colour, lw=fontsize / 6
            )
        )
        name = drawable(label_name(class_names, int(objects.labels[i])), _LONGEST_NAME)
        parts = [name] if len(palette) > 1 else []
        text = " ".join([*parts, *([f"{100 * objects.scores[i]:.0f}"] if scores else [])])
        size = np.array([len(text) * _LETTER, _LINE]) * fontsize * pixels
        place = _free_place(objects.boxes[i], size, (width, height), taken)
        if text and place is not None:
            taken.append(place)
            axes.text(
                place[0] + 0.2 * fontsize * pixels,
                (place[1] + place[3]) / 2,
                text,
                fontsize=fontsize,
                va="center",
                color="black" if colour @ (0.3, 0.59, 0.11) > 0.5 else "white",
                bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            )


def draw_found(
    image: UInt8[np.ndarray, "H W 3"],
    found: Found,
    class_names: Sequence[str],
    palette: Palette,
    path: Path,
) -> None:
    """Writes a PNG of a photograph with masks, boxes, names and scores of its objects.

    The PNG has 512 to 2048 pixels along its longer side: larger photographs are reduced, and the
    pixels of smaller ones are repeated.

    Args:
        image: the photograph.
        found: the objects to draw, those with high scores first.
        class_names: of the labels.
        palette: colours of the labels.
        path: of the PNG.
    """
    from matplotlib.figure import Figure

    size = image.shape[0], image.shape[1]
    longest = max(size)
    times = max(1, -(-_SMALLEST // longest))
    height, width = (max(1, times * side * min(longest, _LARGEST) // longest) for side in size)
    how = Image.Resampling.BOX if longest > _LARGEST else Image.Resampling.NEAREST
    image = np.asarray(Image.fromarray(image).resize((width, height), how))
    objects = objects_at(found, np.arange(len(found.labels)), size, (height, width))
    figure = Figure(figsize=(width / DPI, height / DPI))
    axes = figure.add_axes((0, 0, 1, 1))
    draw_objects(
        axes,
        image,
        objects,
        class_names,
        palette,
        pixels=DPI / 72,
        fontsize=max(7.0, max(height, width) / _PIXELS_PER_POINT),
    )
    axes.spines[:].set_visible(False)
    save_figure(figure, path)


def _repeated(image: np.ndarray, times: int) -> np.ndarray:
    """Returns an image [h, w, channels] with repeated rows and columns."""
    return image if times == 1 else image.repeat(times, axis=0).repeat(times, axis=1)


def _free_place(
    box: np.ndarray, size: np.ndarray, limits: tuple[int, int], taken: Sequence[np.ndarray]
) -> np.ndarray | None:
    """Returns x1, y1, x2, y2 of a name at its box; None if others have all the places.

    Args:
        box: of the object.
        size: width and height of the name.
        limits: width and height of the image.
        taken: places of other names.
    """
    left, top, right, bottom = box
    wide, high = size
    rows = (top - high, top, bottom, bottom - high)
    corners = [(column, row) for column in (left, right - wide) for row in rows]
    most = np.maximum(np.array(limits) - size, 0)
    for corner in corners:
        low = np.clip(corner, 0, most)
        if all(np.any((low >= x[2:]) | (low + size <= x[:2])) for x in taken):
            return np.concatenate([low, low + size])
    return None
