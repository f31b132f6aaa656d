"""Colours of classes: label maps, overlays on photographs, and legends."""

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vig_jax.data.preprocess.masks import IGNORED
from vig_jax.figures import drawable

_OPACITY = 0.6  # of the colours over a photograph
_BORDER = 0.55  # brightness of a colour along the border of a region
_GOLDEN = 0.6180339887  # neighbouring classes get hues that are far apart
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


def draw_legend(
    axes: Any, entries: Sequence[tuple[str, Sequence[int]]], limit: int, fontsize: float = 7
) -> None:
    """Draws names beside patches of their colours; the last line counts what does not fit."""
    from matplotlib.patches import Patch

    shown = entries if len(entries) <= limit else entries[: limit - 1]
    handles = [
        Patch(
            facecolor=f"#{bytes(map(int, colour)).hex()}",
            edgecolor="#555555",
            linewidth=0.5,
            label=drawable(name, 28),
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
        bbox_to_anchor=(-0.04, 1.03),
        fontsize=fontsize,
        frameon=False,
        handlelength=1.1,
        labelspacing=0.25,
        borderpad=0,
    )
