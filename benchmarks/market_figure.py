r"""Draws published top-1 against speed, memory and latency, one figure for each image size.

  python -m benchmarks.market_figure rows.json --out docs

The rows are those of `benchmarks.market`, the accuracies those of `benchmarks/published.py`, at 224
pixels: at other sizes they only name the model. Also prints by which models each of ours is
dominated: as accurate or more, and as fast or faster with the same batch.
"""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.published import OURS, PEERS, Published, Weights

Row = Mapping[str, Any]
Box = tuple[float, float, float, float]

_PANELS = (
    # Title, batch of the largest size or of one image, value of a row, larger is better.
    ("images per second, batch {batch}", "largest", lambda row: row["img_per_s"], True),
    ("memory, MB, batch {batch}", "largest", lambda row: row["memory_bytes"] / 1e6, False),
    ("latency of one image, waited for, ms", "one", lambda row: row["waited_ms"], False),
)
_KINDS = {
    # Marker and colour by how the weights were trained.
    "ViG (ours)": ("*", "#c0392b"),
    "ImageNet-1k": ("o", "#2c5f8a"),
    "distilled": ("^", "#3a8a4d"),
    "more data": ("s", "#b8860b"),
}
_FONT = 8  # points


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.market_figure",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", type=Path, help="a file of benchmarks.market")
    parser.add_argument("--out", type=Path, default=Path(), help="folder of the figures")
    options = parser.parse_args(argv)
    from vig_jax.errors import REPORTED_ERRORS

    try:
        written = json.loads(options.rows.read_text())
        for size in sorted({row["image_size"] for row in written["rows"]}):
            rows = [row for row in written["rows"] if row["image_size"] == size]
            figure = options.out / f"market_{size}.png"
            draw(rows, f"{size} x {size} pixels, bfloat16, {written.get('device', '')}", figure)
            print(f"figure: {figure}")
            print("\n".join(dominated(rows)))
    except REPORTED_ERRORS as error:
        print(f"market_figure.py: {error}", file=sys.stderr)
        return 1
    return 0


def dominated(rows: Sequence[Row]) -> list[str]:
    """Returns a sentence for each of our rows: the peers that are as accurate and as fast.

    Peers whose weights are distilled or come from more data are marked.
    """
    lines = []
    for mine in rows:
        if mine["model"] not in OURS:
            continue
        (weights,) = OURS[mine["model"]].weights
        better = []
        for row in rows:
            same = row["asked_batch_size"] == mine["asked_batch_size"]
            if row["model"] not in PEERS or not same or row["img_per_s"] < mine["img_per_s"]:
                continue
            enough = [w for w in PEERS[row["model"]].weights if w.top1 >= weights.top1]
            if enough:
                kind = kind_of(row["model"], enough[0])
                mark = "" if kind == "ImageNet-1k" else f", {kind}"
                speed = row["img_per_s"] / mine["img_per_s"]
                label = PEERS[row["model"]].label
                better.append(f"{label} ({enough[0].top1:.1f} %, {speed:.2f}x{mark})")
        lines.append(
            f"{OURS[mine['model']].label} ({weights.top1} %), batch {mine['batch_size']}: "
            + ("dominated by " + ", ".join(better) if better else "not dominated")
        )
    return lines


def kind_of(name: str, weights: Weights) -> str:
    """Returns how weights were trained: a key of the legend."""
    if name in OURS:
        return "ViG (ours)"
    return "distilled" if weights.distilled else "more data" if weights.more_data else "ImageNet-1k"


def draw(rows: Sequence[Row], title: str, path: Path) -> None:
    """Writes a PNG of one image size; models without published accuracy are left out.

    Args:
        rows: of `benchmarks.market`, of one image size.
        title: of the figure.
        path: of the file.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    from vig_jax.figures import DPI, save_figure

    known: dict[str, Published] = OURS | PEERS
    rows = [row for row in rows if row["model"] in known]
    largest = max(row["asked_batch_size"] for row in rows)
    chosen = {"largest": largest, "one": 1}
    panels = [
        (*panel, found)
        for panel in _PANELS
        if (found := [row for row in rows if row["asked_batch_size"] == chosen[panel[1]]])
    ]
    figure = Figure(figsize=(11, 0.8 + 5.8 * len(panels)), layout="constrained", dpi=DPI)
    figure.suptitle(f"{title}: published top-1 at 224 pixels", fontsize=11)
    canvas, labelled = FigureCanvasAgg(figure), []
    for place, (name, _, value, larger, found) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, place)
        batches = sorted({row["batch_size"] for row in found})
        axes.set_title(name.format(batch=" or ".join(map(str, batches))), fontsize=10)
        axes.set_xscale("log")
        axes.set_ylabel("top-1, %")
        points = [(known[row["model"]], row["model"], value(row)) for row in found]
        _plot(axes, points, larger)
        labelled.append((axes, points))
    handles = [
        Line2D([], [], marker=marker, color=color, linestyle="", label=kind)
        for kind, (marker, color) in _KINDS.items()
    ]
    handles.append(Line2D([], [], color="#999999", linestyle="--", label="best, ImageNet-1k alone"))
    figure.legend(handles=handles, fontsize=_FONT, loc="outside lower center", ncols=len(handles))
    figure.draw_without_rendering()  # the layout decides where the points are
    figure.set_layout_engine("none")
    for axes, points in labelled:
        _label(axes, points, canvas.get_renderer())
    save_figure(figure, path)


def _plot(axes: Any, points: Sequence[tuple[Published, str, float]], larger: bool) -> None:
    """Draws the weights of each model, the frontier of ImageNet-1k alone, and the labels."""
    from matplotlib.ticker import LogLocator

    fair = []
    for model, name, x in points:
        tops = [weights.top1 for weights in model.weights]
        axes.plot([x] * len(tops), tops, color="#bbbbbb", linewidth=0.8, zorder=1)
        for weights in model.weights:
            kind = kind_of(name, weights)
            marker, color = _KINDS[kind]
            size = 13 if name in OURS else 6
            axes.plot([x], [weights.top1], marker, color=color, markersize=size, zorder=3)
            if kind in ("ViG (ours)", "ImageNet-1k"):
                fair.append((x, weights.top1))
    edge = frontier(fair, larger)
    axes.plot(*zip(*edge, strict=True), "--", color="#999999", linewidth=1, zorder=0)
    axes.margins(x=0.12, y=0.12)
    axes.grid(alpha=0.3)
    low, high = (extreme(x for _, _, x in points) for extreme in (min, max))
    subs = (1, 2, 5) if high > 5 * low else (1, 1.2, 1.5, 2, 3, 4, 5, 6, 7, 8, 9)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.minorticks_off()


def frontier(points: Sequence[tuple[float, float]], larger: bool) -> list[tuple[float, float]]:
    """Returns the points that no other point beats in both values, sorted by the first.

    Args:
        points: pairs of a value and an accuracy.
        larger: larger values are better.
    """
    best: list[tuple[float, float]] = []
    for x, top1 in sorted(points, key=lambda p: (-p[0] if larger else p[0], -p[1])):
        if not best or top1 > best[-1][1]:
            best.append((x, top1))
    return best


def _label(axes: Any, points: Sequence[tuple[Published, str, float]], renderer: Any) -> None:
    """Writes the labels where they cover neither a point nor another label."""
    taken: list[Box] = []
    for model, name, x in points:
        size = 8 if name in OURS else 4
        for weights in model.weights:
            px, py = axes.transData.transform((x, weights.top1))
            taken.append((px - size, py - size, px + size, py + size))
    # Ours first: their labels are nearest to their points.
    for model, name, x in sorted(points, key=lambda point: point[1] not in OURS):
        bold = "bold" if name in OURS else "normal"
        text = axes.annotate(
            model.label,
            (x, model.weights[0].top1),
            xytext=(0, 0),
            textcoords="offset points",
            fontsize=_FONT,
            fontweight=bold,
            color=_KINDS[kind_of(name, model.weights[0])][1],
            arrowprops={"arrowstyle": "-", "color": "#bbbbbb", "linewidth": 0.6},
            annotation_clip=False,
        )
        box = text.get_window_extent(renderer)
        px, py = axes.transData.transform((x, model.weights[0].top1))
        width, height = box.width, box.height
        left, bottom = place(px, py, width, height, taken, axes.bbox.extents)
        taken.append((left, bottom, left + width, bottom + height))
        scale = 72 / axes.figure.dpi
        text.set_position(((left - px) * scale, (bottom - py) * scale))


def place(
    px: float, py: float, width: float, height: float, taken: Sequence[Box], inside: Sequence[float]
) -> tuple[float, float]:
    """Returns the left and lower edge of a label near a point that overlaps least, in pixels.

    Args:
        px: of the point.
        py: of the point.
        width: of the label.
        height: of the label.
        taken: left, lower, right and upper edges of what must stay visible.
        inside: the same of the axes.
    """
    best, cost = (px, py), float("inf")
    for distance in range(7, 120, 6):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)):
            left = px + dx * distance - width * (1 - dx) / 2
            bottom = py + dy * distance - height * (1 - dy) / 2
            box = (left - 1, bottom - 1, left + width + 1, bottom + height + 1)
            out = box[0] < inside[0] or box[1] < inside[1]
            out = out or box[2] > inside[2] or box[3] > inside[3]
            covered = sum(overlap(box, other) for other in taken)
            found = covered + 0.01 * distance + 1e6 * out
            if found < cost:
                best, cost = (left, bottom), found
        if cost < 1e-2 * 120:
            break
    return best


def overlap(one: Box, other: Box) -> float:
    """Returns the area that two boxes share."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, width) * max(0.0, height)


if __name__ == "__main__":
    sys.exit(main())
