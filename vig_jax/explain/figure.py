"""The figure of an explanation: one image, its saliency, and maps of all blocks and heads."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.colors import LogNorm, Normalize

from vig_jax.explain.explanation import Explanation
from vig_jax.explain.receptive_field import contribution_area
from vig_jax.figures import drawable, new_figure, save_figure

_WIDTH = 15.0  # inches
_LARGEST_TILE = 1.0  # inch
_TILE_PIXELS = 56  # per side, at most
_SALIENCY_CELLS = 28  # per row of the image: single pixels are noise to the eye
_MEMORY = "tokens back to a weight of 1/e (darkest: up to 1)"
_WEAKEST = 1e-3  # of the largest gradient, the darkest colour of a receptive field


def draw_explanation(explanation: Explanation, path: str | Path, row: int = 0) -> None:
    """Writes a PNG of the explanation of one image.

    The upper row has the image, the saliency and the receptive fields. Below are the memory of both
    scans and the weight of the local branch, with a column for each block and a row for each head.

    Args:
        explanation: of `explain`.
        path: of the PNG.
        row: the number of the image.
    """
    maps = [
        [gates[i][row] for gates in explanation.gates.values()] for i in range(3)
    ]  # [heads, h, w] for each block
    blocks = [name.replace("stages_", "").replace("blocks_", "") for name in explanation.gates]
    heads = max(x.shape[0] for x in maps[0])
    height, width = explanation.images.shape[1:3]
    tile = min(_LARGEST_TILE, 0.27 * _WIDTH / len(blocks))
    panels = 2 + len(explanation.receptive_fields)
    top, bottom = 0.8 * _WIDTH / panels * height / width + 1.2, tile * heads * height / width + 1.3
    figure = new_figure(_WIDTH, top + bottom)
    parts: Any = figure.subfigures(2, 1, height_ratios=(top, bottom))
    upper, lower = parts
    _draw_upper(upper, explanation, row)
    axes = lower.subplots(1, 3)
    longest = max(float(x.max()) for x in maps[0] + maps[1])
    memory = LogNorm(1, max(2.0, longest))
    titles = (
        "Memory of the forward scan",
        "Memory of the backward scan",
        "Weight of the local branch",
    )
    for axis, title, tiles in zip(axes, titles, maps, strict=True):
        local = tiles is maps[2]
        label = "0: scans, 1: local" if local else _MEMORY
        shown = axis.imshow(
            _montage(tiles if local else [np.maximum(x, 1) for x in tiles]),
            cmap="PuOr" if local else "viridis",
            norm=Normalize(0, 1) if local else memory,
            interpolation="nearest",
        )
        axis.set_title(title, fontsize=10)
        _label_tiles(axis, blocks, [x.shape[0] for x in tiles], shown.get_array().shape)
        label = (
            "0: scans, 1: local" if local else "tokens back to a weight of 1/e (darkest: up to 1)"
        )
        ticks = [0.0, 0.25, 0.5, 0.75, 1.0] if local else _decades(memory)
        _colour_bar(lower, shown, axis, label, ticks)
    save_figure(figure, Path(path))


def _draw_upper(figure: Any, explanation: Explanation, row: int) -> None:
    """Draws the image, the saliency and the receptive fields."""
    fields = explanation.receptive_fields
    explained = explanation.saliency is not None
    panels = iter(figure.subplots(1, 1 + explained + len(fields), squeeze=False)[0])
    for axes in figure.axes:
        axes.set_axis_off()
        axes.set_anchor("N")
    axes = next(panels)
    axes.imshow(explanation.images[row])
    height, width = explanation.images.shape[1:3]
    axes.set_title(f"Image as the model sees it\n{height} x {width} pixels", fontsize=10)
    if explanation.saliency is not None:
        axes = next(panels)
        side = max(1, round(width / _SALIENCY_CELLS))
        cells = _cells(explanation.saliency[row], side)
        largest = float(np.abs(cells).max()) or 1.0
        shown = axes.imshow(cells, cmap="RdBu_r", vmin=-largest, vmax=largest)
        name, probability = drawable(explanation.name_of(row), 20), explanation.probabilities[row]
        axes.set_title(f"Saliency of {name}\n(probability {probability:.0%})", fontsize=10)
        cell = f"{side} x {side} pixels" if side > 1 else "a pixel"
        label = f"added to the logit by {cell}"
        _colour_bar(figure, shown, axes, label, [-largest, 0.0, largest])
    images = len(explanation.images)
    for name, field in fields.items():
        axes = next(panels)
        largest = float(field.max()) or 1.0
        norm = LogNorm(_WEAKEST, 1)
        shown = axes.imshow(np.maximum(field / largest, _WEAKEST), cmap="magma", norm=norm)
        area = f"half of it in {contribution_area(field):.1%} of the area"
        axes.set_title(f"Receptive field, {_readable(name)}\n{area}", fontsize=10)
        label = "gradient / largest" + (f", mean of {images} images" if images > 1 else "")
        _colour_bar(figure, shown, axes, label, _decades(norm))


def _colour_bar(figure: Any, shown: Any, axes: Any, label: str, ticks: Sequence[float]) -> None:
    """Draws a colour bar below; ticks are plain numbers, because figures have no formulas."""
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.85, aspect=30)
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" if tick < 100 else f"{tick:.0f}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=8)
    bar.set_label(label, fontsize=9)


def _decades(norm: Normalize) -> list[float]:
    """Returns ticks of a logarithmic colour bar."""
    least, most = float(norm.vmin or 0), float(norm.vmax or 1)
    steps = (1, 2, 5) if most / least < 1000 else (1,)
    ticks = [step * 10.0**power for power in range(-6, 8) for step in steps]
    return [tick for tick in ticks if least * 0.999 <= tick <= most * 1.001]


def _readable(name: str) -> str:
    """Returns "block 3" for "blocks_3"."""
    kind, _, number = name.partition("s_")
    return f"{kind} {number}"


def _cells(saliency: Float[np.ndarray, "H W"], side: int) -> Float[np.ndarray, "h w"]:
    """Returns the sums over square cells."""
    for axis in (0, 1):
        starts = np.arange(0, saliency.shape[axis], side)
        saliency = np.add.reduceat(saliency, starts, axis=axis)
    return saliency


def _montage(tiles: Sequence[Float[np.ndarray, "_ _ _"]]) -> np.ma.MaskedArray:
    """Returns maps of all heads in one array: a column for each block, a row for each head."""
    grid = np.max([x.shape[1:] for x in tiles], axis=0)
    side = np.maximum(1, grid * min(1.0, _TILE_PIXELS / grid.max())).astype(int)
    gap = max(1, int(side.max()) // 10)
    heads = max(x.shape[0] for x in tiles)
    shape = heads * (side[0] + gap) - gap, len(tiles) * (side[1] + gap) - gap
    montage = np.full(shape, np.nan, np.float32)
    for column, x in enumerate(tiles):
        rows, columns = (np.arange(n) * x.shape[i + 1] // n for i, n in enumerate(side))
        left = column * (side[1] + gap)
        for head, tile in enumerate(x):
            top = head * (side[0] + gap)
            montage[top : top + side[0], left : left + side[1]] = tile[np.ix_(rows, columns)]
    return np.ma.masked_invalid(montage)


def _label_tiles(
    axes: Any, blocks: Sequence[str], heads: Sequence[int], shape: tuple[int, int]
) -> None:
    """Writes the blocks below the columns of a montage, and the heads beside the rows."""
    most = max(heads)
    small = 8 if len(blocks) <= 12 and most <= 12 else 6
    for axis, names, size in (
        (axes.xaxis, blocks, shape[1]),
        (axes.yaxis, [str(i) for i in range(most)], shape[0]),
    ):
        axis.set_ticks((np.arange(len(names)) + 0.5) * size / len(names) - 0.5, names)
        axis.set_tick_params(labelsize=small, length=0)
    if len(blocks) > 12:
        axes.xaxis.set_tick_params(rotation=90)
    axes.set_xlabel("stage.block" if "." in blocks[0] else "block", fontsize=9)
    axes.set_ylabel("head", fontsize=9)
    for side in axes.spines.values():
        side.set_visible(False)
