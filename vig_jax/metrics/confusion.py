"""A confusion matrix of images or pixels: counts, files, the most frequent mistakes, a figure."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from vig_jax.metrics.result_files import load_arrays, save_arrays, texts

CONFUSION_FILE = "confusion.npz"
_MOST_NAMED = 40  # classes with a name on the axes of the figure
_MOST_NUMBERED = 20  # classes with a number in every cell


@dataclasses.dataclass(frozen=True)
class Confusion:
    """A confusion matrix.

    Attributes:
        counts: number of images or pixels by true class (row) and first guess (column).
        class_names: one per label.
        description: names the weights and images, for the title.
        unit: the things that are counted; files have images.
    """

    counts: Int64[np.ndarray, "K K"]
    class_names: tuple[str, ...]
    description: str
    unit: str = "images"

    @classmethod
    def from_counts(
        cls, counts: np.ndarray, class_names: Sequence[str], description: str
    ) -> "Confusion":
        """Returns the matrix of a task's sums; outputs without a class name get a number."""
        unnamed = tuple(f"class {label}" for label in range(len(class_names), len(counts)))
        return cls(np.rint(counts).astype(np.int64), (*class_names, *unnamed), description)

    def save(self, folder: Path) -> None:
        """Writes `confusion.npz` in one step."""
        arrays = {
            "counts": self.counts,
            "class_names": self.class_names,
            "description": self.description,
        }
        save_arrays(folder / CONFUSION_FILE, arrays)

    @classmethod
    def load(cls, folder: Path) -> "Confusion":
        """Reads what `save` has written.

        Raises:
            FileNotFoundError: there is none.
            ReportError: the file is damaged.
        """
        return load_arrays(
            folder / CONFUSION_FILE,
            lambda stored: cls(
                stored["counts"], texts(stored["class_names"]), str(stored["description"])
            ),
        )

    def top(self, limit: int = 100) -> list[dict[str, str | int | float]]:
        """Returns the most frequent mistakes, one row per pair of classes.

        Returns:
            Rows {true, predicted, count, share}. `share` is relative to the row of the true class.
        """
        mistakes = self.counts - np.diag(np.diag(self.counts))
        order = np.argsort(-mistakes, axis=None, kind="stable")[:limit]
        totals = self.counts.sum(axis=1)
        rows: list[dict[str, str | int | float]] = []
        for true, predicted in zip(*np.unravel_index(order, mistakes.shape), strict=True):
            count = int(mistakes[true, predicted])
            if not count:
                break
            rows.append(
                {
                    "true": self.class_names[true],
                    "predicted": self.class_names[predicted],
                    "count": count,
                    "share": round(count / int(totals[true]), 4),
                }
            )
        return rows

    def write_top(self, path: Path) -> None:
        """Writes the most frequent mistakes as CSV; what is not UTF-8 in a name is escaped."""
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, ["true", "predicted", "count", "share"])
            writer.writeheader()
            writer.writerows(self.top())

    def draw(self, path: Path) -> None:
        """Writes a PNG of the rows in percent; names and numbers where there is room for them."""
        from matplotlib.colors import PowerNorm

        from vig_jax.figures import drawable, new_figure, save_figure

        count = len(self.class_names)
        totals = self.counts.sum(axis=1, keepdims=True)
        percent = 100 * self.counts / np.maximum(totals, 1)
        side = min(max(5.0, 0.5 * count + 2.5), 11.0)
        figure = new_figure(side + 0.8, side)
        axes = figure.add_subplot()
        # With many classes the mistakes are spread out: a power norm makes small values visible.
        norm = PowerNorm(1.0 if count <= _MOST_NAMED else 0.4, vmin=0, vmax=100)
        image = axes.imshow(percent, cmap="Blues", norm=norm)
        right = 100 * np.trace(self.counts) / max(self.counts.sum(), 1)
        axes.set_title(
            f"{self.description}\n{self.counts.sum():,} {self.unit}, {right:.2f} % right",
            fontsize=10,
            parse_math=False,
        )
        by = "" if count <= _MOST_NAMED else ", by label"
        axes.set_xlabel(f"predicted class{by}")
        axes.set_ylabel(f"true class{by}")
        if count <= _MOST_NAMED:
            names = [drawable(name, 22) for name in self.class_names]
            places = np.arange(count)
            axes.set_xticks(places, names, rotation=45, ha="right", rotation_mode="anchor")
            axes.set_yticks(places, names)
            for tick in (*axes.get_xticklabels(), *axes.get_yticklabels()):
                tick.set(fontsize=9, parse_math=False)
        if count <= _MOST_NUMBERED:
            for (row, column), value in np.ndenumerate(percent):
                if self.counts[row, column]:
                    axes.text(
                        column,
                        row,
                        f"{value:.0f}" if value >= 1 else "<1",
                        ha="center",
                        va="center",
                        fontsize=9,
                        color="white" if value > 55 else "#222222",
                    )
        ticks = (0, 20, 40, 60, 80, 100) if count <= _MOST_NAMED else (0, 1, 5, 20, 50, 100)
        label = f"% of the true class's {self.unit}"
        figure.colorbar(image, ax=axes, label=label, shrink=0.8, ticks=ticks)
        save_figure(figure, path)
