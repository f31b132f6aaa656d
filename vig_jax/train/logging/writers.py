"""Writes a run's metrics to `metrics.jsonl`, the console and the loggers of the run."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import jax
import numpy as np
import tqdm
from jaxtyping import UInt8

from vig_jax.files import to_json, write_text
from vig_jax.text import printable_lines
from vig_jax.train.intervals import Intervals
from vig_jax.train.logging.loggers import Logger
from vig_jax.train.workdir import METRICS_FILE


class RunLog:
    """Writes the metrics of a run; use as a context manager.

    `metrics.jsonl` gets one object per call of `write`: `step` (updates done), `epoch` and the
    metrics, accuracies as fractions. A resumed run first drops the lines beyond the step it starts
    from, and the part of a line that a killed run may have left, so that no step appears twice.
    """

    def __init__(
        self,
        workdir: Path,
        intervals: Intervals,
        *,
        start_step: int,
        evaluated: bool,
        loggers: Sequence[Logger] = (),
    ) -> None:
        """Opens the files in `workdir`, which exists. Only the first process writes anything.

        Args:
            workdir: of the run.
            intervals: of the run.
            start_step: updates already done.
            evaluated: whether the evaluation at `start_step` is done, too.
            loggers: of the first process; closed at the end.
        """
        self._intervals = intervals
        self._loggers = loggers
        self._start_step = start_step
        self._started: float | None = None  # when the first, compiled update is done
        self._active = jax.process_index() == 0
        self._bars = _Bars(intervals, start_step, shown=self._active and sys.stderr.isatty())
        if self._active:
            path = workdir / METRICS_FILE
            write_text(path, "".join(_lines_before(path, start_step, evaluated)))
            self._jsonl = path.open("a", encoding="utf-8")

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.close()
        for logger in self._loggers:
            logger.close()
        if self._active:
            self._jsonl.close()

    def advance(self) -> None:
        """Advances the progress bars by one update."""
        if self._started is None:
            self._started = time.monotonic()
        self._bars.advance()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of the run after `step` updates; nothing if there are none."""
        if not self._active or not metrics:
            return
        epoch = step / self._intervals.steps_per_epoch
        record = {"step": step, "epoch": round(epoch, 4), **metrics}
        self._jsonl.write(to_json(record, indent=None))
        self._jsonl.flush()
        for logger in self._loggers:
            logger.scalars(step, metrics)
        text = "  ".join(f"{name.removeprefix('train/')} {v:.4g}" for name, v in metrics.items())
        if self._bars.shown and all(name.startswith("train/") for name in metrics):
            self._bars.show(text)
        else:
            place = f"step {step}/{self._intervals.total}, epoch {epoch:.2f}"
            self.say(f"[{place}{self._time_left(step)}]  {text}")

    def figure(self, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        """Hands an image to the loggers."""
        for logger in self._loggers:
            logger.image(name, pixels)

    def say(self, text: str) -> None:
        """Prints lines on the console without breaking the progress bars."""
        if self._active:
            tqdm.tqdm.write(printable_lines(text), file=sys.stderr)

    def _time_left(self, step: int) -> str:
        steps = step - self._start_step - 1  # since then
        if self._started is None or steps < 1 or step == self._intervals.total:
            return ""
        left = (time.monotonic() - self._started) / steps * (self._intervals.total - step)
        return f", {tqdm.tqdm.format_interval(left)} left"


class _Bars:
    """Progress bars on a terminal: run, epoch, and the newest metrics."""

    def __init__(self, intervals: Intervals, start_step: int, *, shown: bool) -> None:
        self.shown = shown
        self._intervals = intervals
        steps, total = intervals.steps_per_epoch, intervals.total
        common = {"unit": "step", "dynamic_ncols": True, "disable": not shown}
        self._run = tqdm.tqdm(total=total, initial=start_step, desc="run", position=0, **common)
        self._epoch = tqdm.tqdm(
            total=min(steps, total),
            initial=start_step % steps,
            desc=self._name_of_epoch(start_step),
            position=1,
            leave=False,
            **common,
        )
        self._metrics = tqdm.tqdm(
            bar_format="{desc}", position=2, leave=False, dynamic_ncols=True, disable=not shown
        )

    def advance(self) -> None:
        if not self.shown:
            return
        if self._epoch.n == self._epoch.total:  # its time begins after the evaluation
            self._epoch.set_description(self._name_of_epoch(self._run.n), refresh=False)
            self._epoch.reset()
        self._run.update()
        self._epoch.update()

    def show(self, text: str) -> None:
        self._metrics.set_description_str(text)

    def close(self) -> None:
        for bar in (self._metrics, self._epoch, self._run):
            bar.close()

    def _name_of_epoch(self, step: int) -> str:
        """Returns the name of the epoch that update `step` + 1 belongs to."""
        steps, total = self._intervals.steps_per_epoch, self._intervals.total
        epochs = -(-total // steps)
        return f"epoch {min(step // steps + 1, epochs)}/{epochs}"


def _lines_before(path: Path, step: int, evaluated: bool) -> list[str]:
    """Returns the complete lines of a metrics file that a run starting at `step` keeps."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []:
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # cut off when the process was killed
            continue
        is_evaluation = any(name.startswith("eval/") for name in record)
        if record["step"] < step or (record["step"] == step and (evaluated or not is_evaluation)):
            kept.append(line)
    return kept
