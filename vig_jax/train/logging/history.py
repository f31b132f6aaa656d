"""A report on a run, from the files in its workdir: curves, figures of the task, a summary."""

import dataclasses
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vig_jax.config.plugins import check_plugins
from vig_jax.errors import ReportError
from vig_jax.figures import new_figure, save_figure
from vig_jax.tasks.registry import Panel, ReportSpec, get_task
from vig_jax.text import printable
from vig_jax.train.workdir import CONFIG_FILE, METRICS_FILE

CURVES_FILE = "curves.png"
_NOISY = ("train/loss", "train/grad_norm", "train/img_per_s", "train/data_wait")
_MANY = 100  # points; longer noisy curves are drawn faintly, with their running mean
_SMALL: dict[str, Any] = {"textcoords": "offset points", "fontsize": 8}
_RAW, _EMA = "eval/", "eval/ema_"

Line = dict[str, Any]  # of metrics.jsonl: step, epoch and some metrics, all numbers


@dataclasses.dataclass(frozen=True)
class RunHistory:
    """The metrics of a run.

    Attributes:
        lines: of metrics.jsonl, in order; at least one.
        total_steps: of the whole run.
        title: names the model and the data.
        spec: the report of the run's task.
    """

    lines: tuple[Line, ...]
    total_steps: int
    title: str
    spec: ReportSpec

    @classmethod
    def read(cls, workdir: Path) -> "RunHistory":
        """Reads a workdir.

        Raises:
            ReportError: no workdir, or a run that has not logged anything yet.
            ConfigError: the run uses plugins that are not imported.
        """
        if not (workdir / CONFIG_FILE).is_file() or not (workdir / METRICS_FILE).is_file():
            raise ReportError(
                f"{workdir} is not a workdir of train.py: it lacks {CONFIG_FILE} or {METRICS_FILE}"
            )
        stored = json.loads((workdir / CONFIG_FILE).read_text(encoding="utf-8"))
        if "total_steps" not in stored:
            raise ReportError(
                f"{workdir / CONFIG_FILE} was written by an older version: resume the run once"
            )
        config = stored["config"]
        check_plugins(config, workdir)
        lines = []
        for line in (workdir / METRICS_FILE).read_text(encoding="utf-8").splitlines():
            try:
                values = json.loads(line, parse_constant=lambda _: None)
            except json.JSONDecodeError:  # half a line: the run is still writing, or was killed
                continue
            # NaN of a run that diverged is neither the best value nor a point to draw.
            lines.append({name: value for name, value in values.items() if value is not None})
        if not lines:
            raise ReportError(
                f"{workdir / METRICS_FILE} is empty: the run has not reached its first log step "
                f"(config.train.log_every_steps={config['train']['log_every_steps']}) yet"
            )
        data = printable(str(config["data"]["path"] or config["data"]["source"]))
        title = f"{config['model']['name']} on {data}"
        task = config.get("task", {"name": "classification"})["name"]
        return cls(tuple(lines), stored["total_steps"], title, get_task(task).report)

    def series(self, name: str) -> tuple[list[float], list[float]]:
        """Returns the epochs and values of one metric."""
        points = [(line["epoch"], line[name]) for line in self.lines if name in line]
        return [epoch for epoch, _ in points], [value for _, value in points]

    def best(self) -> tuple[str, Line] | None:
        """Returns the best evaluation and the name of the metric that ranks it.

        The metric is the primary one of the EMA weights, or else of the raw weights.
        """
        for name in (_EMA + self.spec.primary_metric, _RAW + self.spec.primary_metric):
            if lines := [line for line in self.lines if name in line]:
                return name.removeprefix(_RAW), max(lines, key=lambda line: line[name])
        return None

    def summary(self) -> str:
        """Returns a few lines of text."""
        last = self.lines[-1]
        state = "finished" if last["step"] >= self.total_steps else "unfinished"
        text = [
            f"{self.title}: {state}, {last['step']:,} of {self.total_steps:,} steps, "
            f"epoch {last['epoch']:.2f}"
        ]
        if found := self.best():
            name, best = found
            last = next(line for line in reversed(self.lines) if _RAW + name in line)
            text.append(f"best      epoch {best['epoch']:<8.2f}{_values(best)}, by {name}")
            text.append(f"last      epoch {last['epoch']:<8.2f}{_values(last)}")
        else:
            text.append("not evaluated yet")
        if training := [line for line in self.lines if "train/loss" in line]:
            loss, epoch = training[-1]["train/loss"], training[-1]["epoch"]
            text.append(f"training  epoch {epoch:<8.2f}loss {loss:.4f}")
        if speeds := self.series("train/img_per_s")[1]:
            line = f"speed     {statistics.median(speeds):,.1f} images/s (median)"
            if waits := self.series("train/data_wait")[1]:
                line += f", {statistics.mean(waits):.1%} of the time waiting for data"
            text.append(line)
        return "\n".join(text)


def write_report(workdir: Path) -> list[Path]:
    """Draws the curves of a run, and the figures of its task.

    Args:
        workdir: of the run.

    Returns:
        The files written, into the workdir.

    Raises:
        ReportError: there is nothing to report.
    """
    history = RunHistory.read(workdir)
    draw_curves(history, workdir / CURVES_FILE)
    return [workdir / CURVES_FILE, *history.spec.draw(workdir)]


@dataclasses.dataclass(frozen=True)
class _Curve:
    name: str  # in metrics.jsonl
    label: str
    color: str


def draw_curves(history: RunHistory, path: Path) -> None:
    """Writes a PNG of the logged metrics against the epoch."""
    losses = [_Curve("train/loss", "training", "C0"), *_held_out("loss", "held out", "C1")]
    # Title, curves, factor, lower end of the y axis.
    panels = [
        ("loss", losses, 1.0, None),
        *(
            (panel.title, _task_curves(history, panel), 100.0 if panel.percent else 1.0, None)
            for panel in history.spec.panels
        ),
        ("learning rate", [_Curve("train/lr", "", "C0")], 1.0, 0.0),
        ("gradient norm, before clipping", [_Curve("train/grad_norm", "", "C0")], 1.0, 0.0),
        ("images per second", [_Curve("train/img_per_s", "", "C0")], 1.0, 0.0),
        ("time spent waiting for data, %", [_Curve("train/data_wait", "", "C3")], 100.0, 0.0),
    ]
    rows = -(-len(panels) // 3)
    figure = new_figure(13.0, 3.3 * rows)
    done = history.lines[-1]["step"]
    rest = "" if done >= history.total_steps else f", step {done:,} of {history.total_steps:,}"
    figure.suptitle(f"{history.title}{rest}", fontsize=11, parse_math=False)
    for number, (title, curves, factor, bottom) in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, 3, number)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        for curve in curves:
            _draw_curve(axes, history, curve, factor)
        _widen(axes, history)
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing logged", transform=axes.transAxes, ha="center")
        elif len(curves) > 1:
            axes.legend(fontsize=8)
        if bottom is not None:
            axes.set_ylim(bottom=bottom, top=max(axes.get_ylim()[1], 1e-12))
    # At least 10 % of waiting, so that small shares are not magnified.
    axes.set_ylim(top=max(10.0, axes.get_ylim()[1]))
    save_figure(figure, path)


def _draw_curve(axes: Any, history: RunHistory, curve: _Curve, factor: float) -> None:
    """Draws one metric; noisy ones with many points as their running mean."""
    epochs, values = history.series(curve.name)
    if not values:
        return
    dashes = "--" if curve.name.startswith(_EMA) else "-"
    style: dict[str, Any] = {"color": curve.color, "linestyle": dashes, "label": curve.label}
    values = [factor * value for value in values]
    if curve.name in _NOISY and len(values) > _MANY:
        _running_mean(axes, epochs, values, style)
    else:
        marker, size = ("o", 7 if len(values) == 1 else 3.5) if len(values) <= 30 else (None, 0)
        axes.plot(epochs, values, marker=marker, markersize=size, **style)
        if len(values) == 1:  # a point has no curve to read it from
            axes.annotate(f"{values[0]:.4g}", (epochs[0], values[0]), xytext=(6, 4), **_SMALL)


def _widen(axes: Any, history: RunHistory) -> None:
    """Makes the epochs of a panel those of the whole run where it would show one point."""
    points = {x for line in axes.lines for x in line.get_xdata()}
    if len(points) == 1:
        first, last = 0.0, history.lines[-1]["epoch"]
        margin = 0.05 * (last - first) or 0.5
        axes.set_xlim(first - margin, last + 4 * margin)


def _task_curves(history: RunHistory, panel: Panel) -> list[_Curve]:
    """Returns the curves of a panel, of the metrics that were logged."""
    logged = [(n, label) for n, label in panel.metrics if history.series(_RAW + n)[0]]
    return [
        curve
        for number, (name, label) in enumerate(logged[: panel.limit], start=1)
        for curve in _held_out(name, label, f"C{number}")
    ]


def _held_out(name: str, label: str, color: str) -> list[_Curve]:
    """Returns the curves of the raw and of the EMA weights."""
    return [_Curve(_RAW + name, label, color), _Curve(_EMA + name, f"{label}, EMA weights", color)]


def _running_mean(
    axes: Any, epochs: Sequence[float], values: Sequence[float], style: dict[str, Any]
) -> None:
    """Draws all points faintly, and the running mean over a fiftieth of them."""
    axes.plot(epochs, values, linewidth=0.7, alpha=0.25, color=style["color"])
    width = len(values) // 50
    means = np.convolve(values, np.full(width, 1 / width), mode="valid")
    axes.plot(epochs[width // 2 :][: len(means)], means, **style)


def _values(line: Line) -> str:
    """Returns the metrics of an evaluation as text."""
    return "  ".join(
        f"{name.removeprefix('eval/')} {value:.4f}"
        for name, value in line.items()
        if name.startswith("eval/")
    )
