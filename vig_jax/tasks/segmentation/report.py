"""Figures and tables of segmentation: IoU of each class, confused classes, the worst images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vig_jax.figures import drawable, new_figure, save_figure
from vig_jax.metrics.confusion import Confusion
from vig_jax.metrics.mean_iou import ClassScores, summary
from vig_jax.tasks.class_bars import (
    class_columns,
    label_classes,
    number_bars,
    write_class_table,
)
from vig_jax.tasks.registry import Panel, ReportSpec
from vig_jax.tasks.segmentation.drawing import colour_table, draw_legend, shares
from vig_jax.tasks.segmentation.evaluation import PRIMARY_METRIC
from vig_jax.tasks.segmentation.results import RESULTS_FILE, SegmentationResults, WorstImage

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
    write_class_table(results.rows(), folder / "class_iou.csv")
    draw_class_iou(results, folder / "class_iou.png")
    confusion.draw(folder / "confusion.png")
    confusion.write_top(folder / "top_confusions.csv")
    names = ["class_iou.csv", "class_iou.png", "confusion.png", "top_confusions.csv"]
    if results.worst:
        draw_worst(results, folder / "worst_images.png")
        names.append("worst_images.png")
    return [folder / name for name in names]


def draw_class_iou(results: SegmentationResults, path: Path) -> None:
    """Writes a PNG of the IoU and the accuracy of each class, highest IoU first.

    Classes that neither occur nor are predicted are left out and counted.
    """
    scores = ClassScores.of(results.confusion)
    known = np.flatnonzero(~np.isnan(scores.iou))
    order = known[np.argsort(-scores.iou[known], kind="stable")]
    figure, columns, length = class_columns(order, width=4.4, line=0.19, margin=1.6)
    means = {name: f"{value:.2%}" for name, value in summary(results.confusion).items()}
    title = (
        f"{results.description}\nmIoU {means['miou']}, mean accuracy {means['macc']}, "
        f"pixel accuracy {means['aacc']}"
    )
    absent = len(results.class_names) - len(order)
    if absent:
        title += f"; classes that neither occur nor are predicted: {absent}"
    figure.suptitle(title, fontsize=10)
    for axes, part in columns:
        names = [results.class_names[label] for label in part]
        _draw_bars(axes, names, 100 * scores.iou[part], 100 * scores.accuracy[part], length)
    save_figure(figure, path)


def _draw_bars(
    axes: Any, names: Sequence[str], iou: np.ndarray, accuracy: np.ndarray, length: int
) -> None:
    """Draws bars of the IoU and marks of the accuracy in percent; `length` bars have room."""
    places = np.arange(len(names))
    axes.barh(places, iou, height=0.72, color="#4477aa")
    axes.plot(accuracy, places, "|", color="#cc3311", markersize=7, markeredgewidth=1.6)
    ends = np.fmax(iou, accuracy)  # of a class that never occurs: its IoU
    number_bars(axes, places, iou, iou - 1, ends + 1.5)
    label_classes(axes, names, length, "IoU (bar) and accuracy (red), %")


def draw_worst(results: SegmentationResults, path: Path) -> None:
    """Writes a PNG of the worst images, their true classes, and the predicted ones."""
    count = len(results.worst)
    blocks = 2 if count > 1 else 1
    rows = -(-count // blocks)
    figure = new_figure(8.6 * blocks, 1.95 * rows + 0.7)
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
