"""Colours of classes: label maps, overlays on photographs, and legends."""

import colorsys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vig_jax.data.preprocess.masks import IGNORED
from vig_jax.figures import DPI, drawable, save_figure

_OPACITY = 0.6  # of the colours over a photograph
_BORDER = 0.55  # brightness of a colour along the border of a region
_GOLDEN = 0.6180339887  # neighbouring classes get hues that are far apart
_SMALLEST, _LARGEST = 512, 2048  # pixels, of the longer side of an overlay
_LEGEND_WIDTH, _LEGEND_LEAST, _LINE = 300, 160, 20  # pixels
OTHER = (255, 255, 255)
"""The colour of pixels without a class."""

Palette = Sequence[Sequence[int]]


def default_palette(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Returns a colour for each class of a data set that has no palette."""
    shades = ((0.75, 0.95), (0.9, 0.65), (0.5, 0.85))  # saturation, value
    colours = []
    for label in range(classes):
        saturation, value = shades[label // 3 % len(shades)]
        colour = colorsys.hsv_to_rgb(label * _GOLDEN % 1, saturation, value)
        red, green, blue = (round(255 * part) for part in colour)
        colours.append((red, green, blue))
    return tuple(colours)


def colour_table(palette: Palette) -> UInt8[np.ndarray, "256 3"]:
    """Returns a colour for each value of a label map; values without a class are white."""
    table = np.full((256, 3), OTHER, np.uint8)
    table[: len(palette)] = np.array(palette, np.uint8).reshape(-1, 3)
    return table


def overlay(
    image: UInt8[np.ndarray, "H W 3"], labels: UInt8[np.ndarray, "H W"], palette: Palette
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns a photograph under translucent colours, with a darker border around each region.

    Pixels without a class show the photograph.
    """
    colours = colour_table(palette)[labels].astype(np.float32)
    border = np.zeros(labels.shape, bool)
    border[:-1] |= labels[:-1] != labels[1:]
    border[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    colours[border] *= _BORDER
    opacity = np.where(border, 1, _OPACITY)[..., None]
    opacity = np.where((labels == IGNORED)[..., None], 0, opacity)
    mixed = opacity * colours + (1 - opacity) * image
    return np.rint(mixed).astype(np.uint8)


def shares(labels: UInt8[np.ndarray, "H W"]) -> list[tuple[int, float]]:
    """Returns the classes of a label map and their shares of its pixels, largest first."""
    counts = np.bincount(labels.ravel(), minlength=IGNORED + 1)[:IGNORED]
    order = np.argsort(-counts, kind="stable").tolist()
    return [(label, counts[label] / labels.size) for label in order if counts[label]]


def label_name(class_names: Sequence[str], label: int) -> str:
    """Returns the name of a class, or its number if it has none."""
    return class_names[label] if label < len(class_names) else f"class {label}"


def draw_overlay(
    image: UInt8[np.ndarray, "H W 3"],
    labels: UInt8[np.ndarray, "H W"],
    class_names: Sequence[str],
    palette: Palette,
    path: Path,
) -> None:
    """Writes a PNG of a photograph under the colours of its classes, with a legend.

    The photograph has 512 to 2048 pixels along its longer side: larger ones are reduced, and the
    pixels of smaller ones are repeated. The legend has the share of each class.
    """
    from matplotlib.figure import Figure

    height, width = labels.shape
    longest = max(height, width)
    if longest > _LARGEST:
        shape = tuple(max(1, side * _LARGEST // longest) for side in labels.shape)
        size = (shape[1], shape[0])
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        labels = np.asarray(Image.fromarray(labels).resize(size, Image.Resampling.NEAREST))
    times = max(1, -(-_SMALLEST // longest))
    image, labels = (x.repeat(times, axis=0).repeat(times, axis=1) for x in (image, labels))
    height, width = labels.shape
    total = width + _LEGEND_WIDTH
    tall = max(height, _LEGEND_LEAST)
    figure = Figure(figsize=(total / DPI, tall / DPI))
    axes = figure.add_axes((0, 1 - height / tall, width / total, height / tall))
    axes.imshow(overlay(image, labels, palette), interpolation="nearest", aspect="auto")
    axes.set_axis_off()
    table = colour_table(palette)
    entries: list[tuple[str, Sequence[int]]] = []
    for label, share in shares(labels):
        name = drawable(label_name(class_names, label), 24)
        entries.append((f"{name}  {percent(share)}", table[label].tolist()))
    legend = figure.add_axes((width / total, 0, 1 - width / total, 1))
    draw_legend(legend, entries, max(2, (tall - 12) // _LINE), fontsize=9.0, corner=(0.02, 1.0))
    save_figure(figure, path)


def percent(share: float) -> str:
    """Returns a share as text."""
    return f"{share:.1%}" if share >= 0.001 else "< 0.1%"


def draw_legend(
    axes: Any,
    entries: Sequence[tuple[str, Sequence[int]]],
    limit: int,
    *,
    fontsize: float = 7.0,
    corner: tuple[float, float] = (-0.04, 1.03),
) -> None:
    """Draws names beside patches of their colours; the last line counts what does not fit."""
    from matplotlib.patches import Patch

    shown = entries if len(entries) <= limit else entries[: limit - 1]
    handles = [
        Patch(
            facecolor=f"#{bytes(map(int, colour)).hex()}",
            edgecolor="#555555",
            linewidth=0.5,
            label=name,
        )
        for name, colour in shown
    ]
    if len(shown) < len(entries):
        rest = f"and {len(entries) - len(shown)} more"
        handles.append(Patch(facecolor="none", edgecolor="none", label=rest))
    axes.set_axis_off()
    axes.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=corner,
        fontsize=fontsize,
        frameon=False,
        handlelength=1.1,
        labelspacing=0.25,
        borderpad=0,
    )
