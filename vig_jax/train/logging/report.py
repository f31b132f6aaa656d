"""What a run did, from the files in its workdir: curves, confusion matrix and a few lines."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vig_jax.errors import ReportError
from vig_jax.figures import save_figure
from vig_jax.metrics.confusion import CONFUSION_FILE, Confusion
from vig_jax.train.workdir import CONFIG_FILE, METRICS_FILE

CURVES_FILE = "curves.png"
CONFUSION_PICTURE = "confusion.png"
TOP_CONFUSIONS_FILE = "top_confusions.csv"
_NOISY = ("train/loss", "train/grad_norm", "train/img_per_s", "train/data_wait")
_MANY = 100  # points of these: drawn faintly, with their running mean
_EMA = "eval/ema_"

Line = dict[str, Any]  # of metrics.jsonl: step, epoch and some metrics, all numbers


@dataclasses.dataclass(frozen=True)
class Record:
    """A workdir, read.

    Attributes:
        lines: of metrics.jsonl, in order; at least one.
        total_steps: of the whole run.
        title: which model and data.
    """

    lines: tuple[Line, ...]
    total_steps: int
    title: str

    @classmethod
    def of(cls, workdir: Path) -> "Record":
        """Reads a run's metrics.

        Raises:
            ReportError: no workdir, or a run that has not logged anything yet.
        """
        if not (workdir / CONFIG_FILE).is_file() or not (workdir / METRICS_FILE).is_file():
            raise ReportError(
                f"{workdir} is no workdir of train.py: {CONFIG_FILE} and {METRICS_FILE} are wanted"
            )
        stored = json.loads((workdir / CONFIG_FILE).read_text(encoding="utf-8"))
        if "total_steps" not in stored:
            raise ReportError(f"{workdir / CONFIG_FILE} is of an older version: go on with the run")
        config = stored["config"]
        lines = []
        for line in (workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:  # half a line, while the run is going on or was killed
                continue
        if not lines:
            raise ReportError(
                f"{workdir / METRICS_FILE} is empty: the run has not come to its first log step "
                f"(config.train.log_every_steps={config['train']['log_every_steps']}) yet"
            )
        title = f"{config['model']['name']} on {config['data']['path'] or config['data']['source']}"
        return cls(tuple(lines), stored["total_steps"], title)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values of one metric."""
        points = [(line["epoch"], line[name]) for line in self.lines if name in line]
        return [epoch for epoch, _ in points], [value for _, value in points]

    def best(self, headline: str) -> tuple[str, Line] | None:
        """The evaluation with the highest averaged, or else raw, headline metric, and its name."""
        for name in (_EMA + headline, f"eval/{headline}"):
            if lines := [line for line in self.lines if name in line]:
                return name.removeprefix("eval/"), max(lines, key=lambda line: line[name])
        return None

    def summary(self, headline: str) -> str:
        """A few lines for people."""
        last = self.lines[-1]
        state = "finished" if last["step"] >= self.total_steps else "unfinished"
        told = [
            f"{self.title}: {state}, {last['step']:,} of {self.total_steps:,} steps, "
            f"epoch {last['epoch']:.2f}"
        ]
        if found := self.best(headline):
            name, best = found
            last = next(line for line in reversed(self.lines) if f"eval/{name}" in line)
            told.append(f"best      epoch {best['epoch']:<8.2f}{_values(best)}, by {name}")
            told.append(f"last      epoch {last['epoch']:<8.2f}{_values(last)}")
        else:
            told.append("not evaluated yet")
        if training := [line for line in self.lines if "train/loss" in line]:
            loss, epoch = training[-1]["train/loss"], training[-1]["epoch"]
            told.append(f"training  epoch {epoch:<8.2f}loss {loss:.4f}")
        if speeds := self.series("train/img_per_s")[1]:
            line = f"speed     {statistics.median(speeds):,.1f} images/s (median)"
            if waits := self.series("train/data_wait")[1]:
                line += f", {statistics.mean(waits):.1%} of the time waiting for data"
            told.append(line)
        return "\n".join(told)


def write_report(workdir: Path) -> list[Path]:
    """Draws the curves, and the confusion matrix if one is stored.

    Args:
        workdir: of the run.

    Returns:
        The files written, into the workdir.

    Raises:
        ReportError: nothing to report on.
        ValueError: a damaged confusion matrix.
    """
    record = Record.of(workdir)
    draw_curves(record, workdir / CURVES_FILE)
    written = [workdir / CURVES_FILE]
    if (workdir / CONFUSION_FILE).exists():
        written += write_confusion(Confusion.load(workdir), workdir)
    return written


def write_confusion(confusion: Confusion, folder: Path) -> list[Path]:
    """Writes a confusion matrix as picture and as a table of its most frequent mistakes."""
    confusion.draw(folder / CONFUSION_PICTURE)
    confusion.write_top(folder / TOP_CONFUSIONS_FILE)
    return [folder / CONFUSION_PICTURE, folder / TOP_CONFUSIONS_FILE]


def draw_curves(record: Record, path: Path) -> None:
    """Writes a PNG of all that was logged, against the epoch."""
    from matplotlib.figure import Figure

    second = ("f1", "F1") if record.series("eval/f1")[0] else ("top5", "top-5")
    panels = [
        # Title, curves, least value of the y axis.
        ("loss, nats", [("train/loss", "training", "C0"), *_held_out("loss", "", "C1")], None),
        (
            f"held-out top-1 and {second[1]}, %",
            [*_held_out("top1", "top-1", "C1"), *_held_out(*second, "C2")],
            None,
        ),
        ("learning rate", [("train/lr", "", "C0")], 0),
        ("gradient norm, before clipping", [("train/grad_norm", "", "C0")], 0),
        ("images per second", [("train/img_per_s", "", "C0")], 0),
        ("time spent waiting for data, %", [("train/data_wait", "", "C3")], 0),
    ]
    figure = Figure(figsize=(13, 6.6), layout="constrained")
    done = record.lines[-1]["step"]
    rest = "" if done >= record.total_steps else f", step {done:,} of {record.total_steps:,}"
    figure.suptitle(f"{record.title}{rest}", fontsize=11, parse_math=False)
    for place, (title, curves, bottom) in enumerate(panels, start=1):
        axes = figure.add_subplot(2, 3, place)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        for name, label, color in curves:
            epochs, values = record.series(name)
            if values:
                factor = 100 if title.endswith("%") else 1
                dashes = "--" if name.startswith(_EMA) else "-"
                style: dict[str, Any] = {"color": color, "linestyle": dashes, "label": label}
                values = [factor * value for value in values]
                if name in _NOISY and len(values) > _MANY:
                    _running_mean(axes, epochs, values, style)
                else:
                    marker = "o" if len(values) <= 30 else None
                    axes.plot(epochs, values, marker=marker, markersize=3.5, **style)
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center")
        elif len(curves) > 1:
            axes.legend(fontsize=8)
        if bottom is not None:
            axes.set_ylim(bottom=bottom, top=max(axes.get_ylim()[1], 1e-12))
    axes.set_ylim(top=max(10.0, axes.get_ylim()[1]))  # of the waiting: 1 % shall look little
    save_figure(figure, path)


def _held_out(name: str, label: str, color: str) -> list[tuple[str, str, str]]:
    """The curves of the raw and of the averaged weights."""
    label = label or "held out"
    return [(f"eval/{name}", label, color), (_EMA + name, f"{label}, averaged weights", color)]


def _running_mean(
    axes: Any, epochs: Sequence[float], values: Sequence[float], style: dict[str, Any]
) -> None:
    """All points faintly, and the mean of a fiftieth of them at a time."""
    axes.plot(epochs, values, linewidth=0.7, alpha=0.25, color=style["color"])
    width = len(values) // 50
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    axes.plot(epochs[width // 2 :][: len(means)], means, **style)


def _values(line: Line) -> str:
    """The metrics of an evaluation."""
    return "  ".join(
        f"{name.removeprefix('eval/')} {value:.4f}"
        for name, value in line.items()
        if name.startswith("eval/")
    )
