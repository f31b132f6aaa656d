"""The table of all classes as CSV, and the parts of a figure with bars for each class."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vig_jax.figures import drawable, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CLASSES_PER_COLUMN = 40


def write_class_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Writes rows with the same keys as CSV, empty where there is no value."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})


def class_columns(
    order: np.ndarray, *, width: float, line: float, margin: float
) -> tuple["Figure", list[tuple[Any, np.ndarray]], int]:
    """Returns an empty figure with columns for classes.

    Args:
        order: labels of the classes, from top to bottom, column after column.
        width: of a column, inches.
        line: height of a class, inches.
        margin: height of the rest of the figure, inches.

    Returns:
        The figure, the axes of each column with its labels, and the number of classes that a
        column has room for.
    """
    columns = max(1, -(-len(order) // _CLASSES_PER_COLUMN))
    length = max(1, -(-len(order) // columns))
    figure = new_figure(width * columns + 0.4, line * length + margin)
    parts = [
        (figure.add_subplot(1, columns, number + 1), order[number * length : (number + 1) * length])
        for number in range(columns)
    ]
    return figure, parts, length


def number_bars(
    axes: Any, places: np.ndarray, values: np.ndarray, inside: np.ndarray, outside: np.ndarray
) -> None:
    """Writes the values of horizontal bars, in percent, into long bars and beside short ones.

    Args:
        axes: of Matplotlib.
        places: vertical coordinate of each bar.
        values: length of each bar.
        inside: right end of the text in a long bar.
        outside: left end of the text beside a short bar.
    """
    rows = zip(*(x.tolist() for x in (places, values, inside, outside)), strict=True)
    for place, value, right, left in rows:
        fits = value > 12  # percent
        axes.text(
            right if fits else left,
            place,
            f"{value:.1f}",
            va="center",
            ha="right" if fits else "left",
            fontsize=6.5,
            color="white" if fits else "#222222",
        )


def label_classes(axes: Any, names: Sequence[str], length: int, label: str) -> None:
    """Writes the names of classes beside a column, from top to bottom, and sets its limits.

    Args:
        axes: of Matplotlib, with the bar of class i at height i and values in percent.
        names: of the classes.
        length: number of classes that the column has room for.
        label: of the values.
    """
    axes.set_yticks(range(len(names)), [drawable(name, 24) for name in names], fontsize=8)
    axes.set_xlim(0, 100)
    axes.set_ylim(length - 0.4, -0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel(label, fontsize=8)
