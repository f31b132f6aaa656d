"""Where a run's numbers go: `metrics.jsonl`, TensorBoard files and the console."""

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import jax
import tensorboardX
import tqdm

from vig_jax.train.calendar import Calendar
from vig_jax.train.workdir import METRICS_FILE, write_atomically


class RunLog:
    """Writes metrics of a run; use as a context manager.

    `metrics.jsonl` gets one object per call of `write`: `step` (updates done), `epoch` and the
    metrics, accuracies as fractions. A resumed run first drops the lines beyond the step it starts
    from, and the part of a line that a killed run may have left, so that no step is there twice.
    TensorBoard is told to forget the same steps.
    """

    def __init__(
        self, workdir: Path, calendar: Calendar, *, start_step: int, evaluated: bool
    ) -> None:
        """Opens the files in `workdir`, which exists. Only the first process writes anything.

        Args:
            workdir: of the run.
            calendar: of the run.
            start_step: updates already done.
            evaluated: whether the evaluation at `start_step` is done, too.
        """
        self._calendar = calendar
        self._started = (start_step, time.monotonic())
        self._active = jax.process_index() == 0
        self._bar = tqdm.tqdm(
            total=calendar.total,
            initial=start_step,
            unit="step",
            dynamic_ncols=True,
            disable=not (self._active and sys.stderr.isatty()),
        )
        if self._active:
            path = workdir / METRICS_FILE
            write_atomically(path, "".join(_lines_before(path, start_step, evaluated)))
            self._jsonl = path.open("a", encoding="utf-8")
            self._board = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start_step + 1
            )

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.close()
        if self._active:
            self._board.close()
            self._jsonl.close()

    def advance(self) -> None:
        """Moves the progress bar one update on."""
        self._bar.update()

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics of the run after `step` updates; nothing if there are none."""
        if not self._active or not metrics:
            return
        epoch = step / self._calendar.steps_per_epoch
        self._jsonl.write(json.dumps({"step": step, "epoch": round(epoch, 4), **metrics}) + "\n")
        self._jsonl.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        text = "  ".join(f"{name.removeprefix('train/')} {v:.4g}" for name, v in metrics.items())
        if not self._bar.disable and all(name.startswith("train/") for name in metrics):
            self._bar.set_postfix_str(text)
        else:
            place = f"step {step}/{self._calendar.total}, epoch {epoch:.2f}"
            self.say(f"[{place}{self._time_left(step)}]  {text}")

    def say(self, text: str) -> None:
        """Lines on the console that do not tear the progress bar."""
        if self._active:
            self._bar.write(text, file=sys.stderr)

    def _time_left(self, step: int) -> str:
        first, then = self._started
        if step in (first, self._calendar.total):
            return ""
        left = (time.monotonic() - then) / (step - first) * (self._calendar.total - step)
        return f", {tqdm.tqdm.format_interval(left)} left"


def _lines_before(path: Path, step: int, evaluated: bool) -> list[str]:
    """The complete lines of a metrics file that a run starting at `step` will not write again."""
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
