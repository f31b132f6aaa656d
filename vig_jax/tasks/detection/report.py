"""Figures and tables of detection: AP of each class, precision and recall, the worst images."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vig_jax.figures import new_figure, save_figure
from vig_jax.metrics.coco_ap import RECALLS, CocoScores
from vig_jax.metrics.coco_matching import IOU_THRESHOLDS, Kind
from vig_jax.tasks.class_bars import (
    class_columns,
    label_classes,
    number_bars,
    write_class_table,
)
from vig_jax.tasks.detection.drawing import draw_objects
from vig_jax.tasks.detection.evaluation import PRIMARY_METRIC
from vig_jax.tasks.detection.results import (
    LEAST_SCORE,
    RESULTS_FILE,
    DetectionResults,
    WorstImage,
)
from vig_jax.tasks.registry import Panel, ReportSpec

_COLOURS: Mapping[Kind, str] = {"box": "#4477aa", "mask": "#228833"}
_CURVES = ((0, "#4477aa"), (5, "#cc3311"), (8, "#999933"))  # IoU 0.5, 0.75 and 0.9


def draw_results(folder: Path) -> list[Path]:
    """Draws the results of a folder and writes them as tables.

    Returns:
        The files written; none if there are no results.

    Raises:
        ReportError: the stored results are damaged.
    """
    if not (folder / RESULTS_FILE).exists():
        return []
    results = DetectionResults.load(folder)
    write_class_table(results.rows(), folder / "class_ap.csv")
    draw_class_ap(results, folder / "class_ap.png")
    draw_curves(results, folder / "precision_recall.png")
    names = ["class_ap.csv", "class_ap.png", "precision_recall.png"]
    if results.worst:
        draw_worst(results, folder / "worst_images.png")
        names.append("worst_images.png")
    return [folder / name for name in names]


def _title(results: DetectionResults) -> str:
    """Returns the description, and a line with the main metrics of each kind."""
    lines = [results.description]
    for kind, scores in results.scores.items():
        found = scores.summary()
        lines.append(
            f"{kind} AP {found['ap']:.1%}, AP50 {found['ap50']:.1%}, AP75 {found['ap75']:.1%}"
        )
    return "\n".join(lines)


def draw_class_ap(results: DetectionResults, path: Path) -> None:
    """Writes a PNG of the AP and AP50 of each class, best class first.

    Classes without an object are left out and counted.
    """
    kinds = tuple(results.scores)
    ap = {kind: results.scores[kind].class_ap() for kind in kinds}
    known = np.flatnonzero(ap["box"] >= 0)
    order = known[np.argsort(-ap[kinds[-1]][known], kind="stable")]
    line = 0.19 if len(kinds) == 1 else 0.28  # inches
    figure, columns, length = class_columns(order, width=4.6, line=line, margin=2.1)
    title = _title(results)
    absent = len(results.class_names) - len(order)
    if absent:
        title += f"\nclasses without an object: {absent}"
    figure.suptitle(title, fontsize=10)
    for axes, part in columns:
        _draw_bars(axes, results, part, length)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7
    )
    save_figure(figure, path)


def _draw_bars(axes: Any, results: DetectionResults, part: np.ndarray, length: int) -> None:
    """Draws bars of the AP of some classes and marks of the AP50; `length` classes have room."""
    places = np.arange(len(part))
    high = 0.76 / len(results.scores)
    for number, (kind, scores) in enumerate(results.scores.items()):
        shifted = places + (number - (len(results.scores) - 1) / 2) * high
        values = 100 * scores.class_ap()[part]
        colour = _COLOURS[kind]
        axes.barh(shifted, values, height=0.92 * high, color=colour, label=f"{kind} AP")
        axes.plot(
            100 * scores.class_ap(0)[part],
            shifted,
            "|",
            color=colour,
            markersize=5,
            markeredgewidth=1.4,
            label=f"{kind} AP50",
        )
        number_bars(axes, shifted, values, values - 0.8, values + 0.8)
    names = [results.class_names[label] for label in part]
    label_classes(axes, names, length, "AP and AP50, %")


def draw_curves(results: DetectionResults, path: Path) -> None:
    """Writes a PNG of precision against recall, for three IoU thresholds and their mean.

    A thick line is the mean over the classes, and thin lines are the classes at IoU 0.5.
    """
    count = len(results.scores)
    figure = new_figure(4.3 * count + 0.3, 5.2)
    figure.suptitle(_title(results), fontsize=10)
    for number, (kind, scores) in enumerate(results.scores.items(), start=1):
        _draw_curves_of(figure.add_subplot(1, count, number), kind, scores)
    save_figure(figure, path)


def _draw_curves_of(axes: Any, kind: Kind, scores: CocoScores) -> None:
    """Draws the curves of one kind."""
    known = scores.precision[:, :, scores.objects[:, 0] > 0, 0]
    axes.plot(RECALLS, known[0], color="#bbccdd", linewidth=0.5)
    for threshold, colour in _CURVES:
        curve = known[threshold].mean(axis=-1)
        label = f"IoU {IOU_THRESHOLDS[threshold]:.2g}: {100 * curve.mean():.1f}"
        axes.plot(RECALLS, curve, color=colour, linewidth=1.8, label=label)
    curve = known.mean(axis=(0, -1))
    label = f"mean of 0.5 to 0.95: {100 * curve.mean():.1f}"
    axes.plot(RECALLS, curve, color="#222222", linewidth=1.8, linestyle="--", label=label)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    axes.set_title({"box": "boxes", "mask": "masks"}[kind], fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.5)
    axes.legend(
        fontsize=7,
        title="AP, %",
        title_fontsize=7,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.13),
        ncols=2,
    )


def draw_worst(results: DetectionResults, path: Path) -> None:
    """Writes a PNG of the worst images, once with their objects and once with the detections."""
    blocks = min(3, len(results.worst))
    rows = -(-len(results.worst) // blocks)
    figure = new_figure(5.4 * blocks, 2.95 * rows + 0.7)
    figure.suptitle(
        f"{results.description}\nimages with the lowest AP: objects (left) and detections with a "
        f"score of at least {LEAST_SCORE:.0%} (right)",
        fontsize=10,
    )
    grid = figure.add_gridspec(rows, 2 * blocks)
    for number, worst in enumerate(results.worst):
        row, block = divmod(number, blocks)
        cells = [figure.add_subplot(grid[row, 2 * block + side]) for side in range(2)]
        _draw_pair(cells, worst, results)
    save_figure(figure, path)


def _draw_pair(cells: Sequence[Any], worst: WorstImage, results: DetectionResults) -> None:
    """Draws the objects and the detections of an image into two axes."""
    assert worst.image is not None
    assert worst.truth is not None
    assert worst.found is not None
    palette = results.palette.tolist()
    pixels = max(worst.image.shape[:2]) / (2.55 * 72)  # of the image per point
    for axes, objects in zip(cells, (worst.truth, worst.found), strict=True):
        draw_objects(
            axes,
            worst.image,
            objects,
            results.class_names,
            palette,
            pixels=pixels,
            fontsize=6.0,
            scores=objects is worst.found,
        )
        axes.spines[:].set(color="#999999", linewidth=0.5)
    cells[0].set_title(f"image {worst.index}: AP {worst.ap:.1%}", fontsize=8, loc="left")
    cells[1].set_title(
        f"objects: {worst.objects}, detections: {len(worst.found.labels)}", fontsize=8, loc="left"
    )


def _panel(kind: Kind) -> Panel:
    metrics = (("ap", "AP"), ("ap50", "AP50"), ("ap75", "AP75"))
    title = {"box": "held-out AP of boxes, %", "mask": "held-out AP of masks, %"}[kind]
    names = tuple((f"{kind}_{name}", label) for name, label in metrics)
    return Panel(title, names, percent=True)


REPORT = ReportSpec(
    primary_metric=PRIMARY_METRIC, panels=(_panel("box"), _panel("mask")), draw=draw_results
)
