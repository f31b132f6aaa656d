"""Figures and tables of segmentation: IoU of each class, confused classes, the worst images."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vig_jax.figures import drawable, save_figure
from vig_jax.metrics.confusion import Confusion
from vig_jax.metrics.mean_iou import ClassScores, summary
from vig_jax.tasks.registry import Panel, ReportSpec
from vig_jax.tasks.segmentation.drawing import colour_table, draw_legend, shares
from vig_jax.tasks.segmentation.evaluation import PRIMARY_METRIC
from vig_jax.tasks.segmentation.results import RESULTS_FILE, SegmentationResults, WorstImage

_CLASSES_PER_COLUMN = 40  # of bars
_LEGEND_LINES = 9


def draw_results(folder: Path) -> list[Path]:
    """Draws the results of a folder and writes them as tables.

    Returns:
        The files written; none if there are no results.

    Raises:
        ReportError: the stored results are damaged.
    """
    if not (folder / RESULTS_FILE).exists():
        return []
    results = SegmentationResults.load(folder)
    confusion = Confusion(
        results.confusion, results.class_names, results.description, unit="pixels"
    )
    write_class_table(results, folder / "class_iou.csv")
    draw_class_iou(results, folder / "class_iou.png")
    confusion.draw(folder / "confusion.png")
    confusion.write_top(folder / "top_confusions.csv")
    names = ["class_iou.csv", "class_iou.png", "confusion.png", "top_confusions.csv"]
    if results.worst:
        draw_worst(results, folder / "worst_images.png")
        names.append("worst_images.png")
    return [folder / name for name in names]


def write_class_table(results: SegmentationResults, path: Path) -> None:
    """Writes `SegmentationResults.rows` as CSV, empty where there is no value."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        rows = results.rows()
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})


def draw_class_iou(results: SegmentationResults, path: Path) -> None:
    """Writes a PNG of the IoU and the accuracy of each class, highest IoU first.

    Classes that neither occur nor are predicted are left out and counted.
    """
    from matplotlib.figure import Figure

    scores = ClassScores.of(results.confusion)
    known = np.flatnonzero(~np.isnan(scores.iou))
    order = known[np.argsort(-scores.iou[known], kind="stable")]
    columns = max(1, -(-len(order) // _CLASSES_PER_COLUMN))
    length = -(-len(order) // columns) if len(order) else 1
    figure = Figure(figsize=(4.4 * columns + 0.4, 0.19 * length + 1.6), layout="constrained")
    means = {name: f"{value:.2%}" for name, value in summary(results.confusion).items()}
    title = (
        f"{results.description}\nmIoU {means['miou']}, mean accuracy {means['macc']}, "
        f"pixel accuracy {means['aacc']}"
    )
    absent = len(results.class_names) - len(order)
    if absent:
        title += f"; classes that neither occur nor are predicted: {absent}"
    figure.suptitle(title, fontsize=10)
    for number in range(columns):
        part = order[number * length : (number + 1) * length]
        axes = figure.add_subplot(1, columns, number + 1)
        names = [results.class_names[label] for label in part]
        _draw_bars(axes, names, 100 * scores.iou[part], 100 * scores.accuracy[part], length)
    save_figure(figure, path)


def _draw_bars(
    axes: Any, names: Sequence[str], iou: np.ndarray, accuracy: np.ndarray, length: int
) -> None:
    """Draws bars of the IoU and marks of the accuracy in percent; `length` bars have room."""
    places = range(len(names))
    axes.barh(places, iou, height=0.72, color="#4477aa")
    axes.plot(accuracy, places, "|", color="#cc3311", markersize=7, markeredgewidth=1.6)
    axes.set_yticks(places, [drawable(name, 24) for name in names], fontsize=8)
    ends = np.fmax(iou, accuracy).tolist()  # of a class that never occurs: its IoU
    for place, value, end in zip(places, iou.tolist(), ends, strict=True):
        inside = value > 12  # percent
        axes.text(
            value - 1 if inside else end + 1.5,
            place,
            f"{value:.1f}",
            va="center",
            ha="right" if inside else "left",
            fontsize=6.5,
            color="white" if inside else "#222222",
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(length - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("IoU (bar) and accuracy (red), %", fontsize=8)


def draw_worst(results: SegmentationResults, path: Path) -> None:
    """Writes a PNG of the worst images, their true classes, and the predicted ones."""
    from matplotlib.figure import Figure

    count = len(results.worst)
    blocks = 2 if count > 1 else 1
    rows = -(-count // blocks)
    figure = Figure(figsize=(8.6 * blocks, 1.95 * rows + 0.7), layout="constrained")
    figure.suptitle(
        f"{results.description}\nimages with the lowest mean IoU: image, truth, prediction; "
        "without a class: white",
        fontsize=10,
    )
    grid = figure.add_gridspec(rows, 4 * blocks, width_ratios=(1, 1, 1, 0.85) * blocks)
    for number, worst in enumerate(results.worst):
        row, block = divmod(number, blocks)
        panels, entries = _panels(worst, results)
        for column, panel in enumerate(panels):
            axes = figure.add_subplot(grid[row, 4 * block + column])
            axes.imshow(panel, interpolation="nearest")
            axes.set(xticks=(), yticks=())
            axes.spines[:].set(color="#999999", linewidth=0.5)
            if column == 0:
                axes.set_title(
                    f"image {worst.index}: mean IoU {worst.iou:.1%}, "
                    f"pixel accuracy {worst.accuracy:.1%}",
                    fontsize=8,
                    loc="left",
                )
        draw_legend(figure.add_subplot(grid[row, 4 * block + 3]), entries, _LEGEND_LINES)
    save_figure(figure, path)


def _panels(
    worst: WorstImage, results: SegmentationResults
) -> tuple[list[np.ndarray], list[tuple[str, Sequence[int]]]]:
    """Returns the image, its coloured label maps, and the classes in them with their colours."""
    assert worst.image is not None
    assert worst.truth is not None
    assert worst.predicted is not None
    table = colour_table(results.palette.tolist())
    both = np.concatenate([worst.truth, worst.predicted])
    entries: list[tuple[str, Sequence[int]]] = [
        (drawable(results.class_names[label], 28), table[label].tolist())
        for label, _ in shares(both)
    ]
    return [worst.image, table[worst.truth], table[worst.predicted]], entries


REPORT = ReportSpec(
    primary_metric=PRIMARY_METRIC,
    panels=(
        Panel(
            "held-out mIoU and accuracy, %",
            (("miou", "mean IoU"), ("macc", "mean accuracy"), ("aacc", "pixel accuracy")),
            percent=True,
        ),
    ),
    draw=draw_results,
)
