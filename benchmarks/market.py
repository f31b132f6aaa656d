r"""Times all models that a user may choose from, and ours, on one GPU, in bfloat16.

  python -m benchmarks.market --json rows.json --minutes 9
  python -m benchmarks.market --json rows.json --resume rows.json --minutes 9
  python -m benchmarks.market --models vig_s --peers levit_384 --shapes 224x256,1 --json rows.json
  python -m benchmarks.market_figure rows.json --out figures

The models are those of `benchmarks/published.py`. Each runs as in `benchmarks.peers`: inference of
uint8 pixels, ours by `vig_jax.predictor`, peers compiled with CUDA graphs, in channels-last layout
where they are convolutional, with the norms and branches merged that timm can merge.

Each model has a process. --parallel processes prepare (compile) at the same time, then all wait,
and the samples of the models alternate, one process at a time. Preparing takes most of the time.
The processes of a round share the memory of the GPU: a batch that does not fit beside the others is
prepared again alone, and halved until it fits.

  img/s, ms  calls queued back to back, with one wait at the end: the median of the samples
  +-         half the distance between the 16th and 84th percentile of these samples, in ms
  waited     milliseconds of a call that the host waits for, pixels and logits on the device
  pixels     the copy of a batch of pixels to the device
  fetch      the copy of the logits to the host
  answer     all three without waiting in between: from pixels to logits on the host
  MB         memory of our compiled program, or the most that PyTorch held

Results of ours are compared with float32 first, for the first batch size of each image size. The
rows are written after each round. --minutes ends the run in time: what is left is reported, and
--resume continues with it. A model that fails, or does not take an image size, is reported, and
--resume leaves it out.
"""

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.market_worker import MEMORY, Job, Ready, facts, prepare, serve
from benchmarks.published import OURS, PEERS

_SHAPES = ("224x256,8,1", "512x64,1", "1024x16,1")
_MODES = ("default", "reduce-overhead", "max-autotune", "eager")
_SECONDS_FOR_MEASURING = 5  # of one model, at most, with all batches
_ANSWER_SECONDS = 120  # of a process that measures

Row = dict[str, Any]
Serve = Callable[[Connection, Job], None]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _options(argv)
    # Each process takes the memory that it needs.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    threads = max(1, (os.cpu_count() or 1) // options.parallel)
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
    from vig_jax.errors import REPORTED_ERRORS
    from vig_jax.text import escape_output

    escape_output()
    try:
        _check_installed(options.peers)
        return Market(options, _serve).run()
    except REPORTED_ERRORS as error:
        print(f"market.py: {error}", file=sys.stderr)
        return 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.market",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--models", nargs="*", choices=list(OURS), default=list(OURS), help="ours (default: all)"
    )
    parser.add_argument(
        "--peers", nargs="*", default=list(PEERS), help=f"(default: all of {', '.join(PEERS)})"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        type=_shape,
        default=[_shape(text) for text in _SHAPES],
        metavar="PIXELSxBATCH[,BATCH...]",
        help=f"most important first (default: {' '.join(_SHAPES)})",
    )
    parser.add_argument("--parallel", type=int, default=8, help="processes (default 8)")
    parser.add_argument("--minutes", type=float, help="end in time (default: no limit)")
    parser.add_argument("--repeats", type=int, default=5, help="samples (default 5)")
    parser.add_argument("--sample-seconds", type=float, default=0.1, help="(default 0.1)")
    parser.add_argument("--compile-mode", choices=_MODES, default="reduce-overhead")
    parser.add_argument("--json", type=Path, required=True, help="file of facts and rows")
    parser.add_argument("--resume", type=Path, help="a file of --json, whose rows are kept")
    options = parser.parse_args(argv)
    for name in ("parallel", "repeats"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return options


def _shape(text: str) -> tuple[int, tuple[int, ...]]:
    """Parses an image size and batch sizes."""
    size, _, batches = text.partition("x")
    numbers = [size, *batches.split(",")]
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise argparse.ArgumentTypeError(f"{text!r} is not PIXELSxBATCH,BATCH, as in 224x256,1")
    return int(size), tuple(map(int, numbers[1:]))


def _check_installed(peers: Sequence[str]) -> None:
    """Checks that the peers' libraries are there, before a model fails for it.

    Raises:
        ConfigError: one of them is not installed.
    """
    from vig_jax.errors import ConfigError

    for name in ("torch", "timm") if peers else ():
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"{name} is not installed, and the peers need PyTorch and timm: pip install torch "
                "timm. Or run our models alone: --peers without names"
            )


def _serve(connection: Connection, job: Job) -> None:
    serve(connection, job, prepare, facts)


@dataclasses.dataclass
class _Worker:
    """A process with a model."""

    job: Job
    process: Any
    connection: Connection
    ready: Ready | None = None
    late: bool = False

    def ask(self, *message: Any) -> Any:
        """Sends a request and returns the answer; an error ends the process and is returned."""
        try:
            self.connection.send(message)
            if self.connection.poll(_ANSWER_SECONDS):
                return self.connection.recv()
            self.process.kill()
            return f"no answer in {_ANSWER_SECONDS} s"
        except (EOFError, OSError):
            self.process.join(5)
            return f"the process ended with status {self.process.exitcode}"

    def end(self) -> None:
        """Ends the process, and waits until its memory is free."""
        try:
            self.connection.send(None)
            self.process.join(5)
        except OSError:  # it has ended
            pass
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        self.connection.close()


class Market:
    """A run of the benchmark.

    Args:
        options: of the command line.
        serve: runs in the processes: takes a connection and a `Job`.
    """

    def __init__(self, options: argparse.Namespace, serve: Serve):
        self.options, self.serve = options, serve
        self.rows: list[Row] = []
        self.facts: dict[str, Any] = {}
        self.failed: list[Row] = []
        self.left: list[Job] = []
        limit = options.minutes
        self.deadline = time.monotonic() + 60 * limit if limit else float("inf")
        self.longest_round = 0.0

    def run(self) -> int:
        """Measures all models; returns the exit status."""
        if self.options.resume:
            kept = json.loads(self.options.resume.read_text())
            self.rows, self.failed = kept.pop("rows"), kept.pop("failed")
            self.facts = kept
        self._write()  # fail now if it cannot be written
        print(_HEAD)
        for size, batches in self.options.shapes:
            crowded: list[Job] = []
            for jobs in _chunks(self._jobs(size, batches), self.options.parallel):
                crowded += self._round(jobs)
            for job in crowded:
                self._round([job])
        print(", ".join(f"{name} {value}" for name, value in self.facts.items()))
        for row in self.failed:
            print("not measured: {model} at {image_size} pixels, batch ".format(**row), end="")
            print("{asked_batch_size}: {reason}".format(**row))
        for job in self.left:
            print(f"left for --resume: {job.name} at {job.image_size} pixels")
        return int(any(row["model"] in OURS for row in self.failed))

    def _jobs(self, size: int, batches: Sequence[int]) -> list[Job]:
        """Returns the models that lack rows at an image size."""
        mode = self.options.compile_mode
        keys = ("model", "image_size", "asked_batch_size")
        done = {tuple(row[key] for key in keys) for row in (*self.rows, *self.failed)}
        jobs = []
        for name in [*self.options.models, *self.options.peers]:
            missing = tuple(batch for batch in batches if (name, size, batch) not in done)
            if missing:
                peer = name not in OURS
                jobs.append(Job(name, peer, size, missing, None if mode == "eager" else mode))
        return jobs

    def _round(self, jobs: Sequence[Job]) -> list[Job]:
        """Measures some models together; returns those that need the memory of the others."""
        left = self.deadline - time.monotonic()
        if left < self.longest_round or left < _SECONDS_FOR_MEASURING * len(jobs):
            self.left += jobs
            return []
        begun = time.monotonic()
        workers = [self._start(job) for job in jobs]
        try:
            self._wait(workers)
            rows = self._measure([worker for worker in workers if worker.ready])
        finally:
            for worker in workers:
                worker.end()
        for row in rows:
            print(_text(row), flush=True)
        self.rows += rows
        crowded = self._reasons(workers)
        self._write()
        self.longest_round = max(self.longest_round, time.monotonic() - begun)
        return crowded

    def _start(self, job: Job) -> _Worker:
        context = multiprocessing.get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=self.serve, args=(there, job))
        process.start()
        there.close()  # so that the end of the process ends the connection
        return _Worker(job, process, here)

    def _wait(self, workers: Sequence[_Worker]) -> None:
        """Waits until all are ready, have ended, or the time is needed for measuring."""
        end = self.deadline - _SECONDS_FOR_MEASURING * len(workers)
        waiting = {worker.connection: worker for worker in workers}
        while waiting and time.monotonic() < end:
            for connection in wait(list(waiting), timeout=0.5):
                worker = waiting.pop(connection)  # type: ignore[call-overload]
                try:
                    worker.ready = worker.connection.recv()
                except (EOFError, OSError):
                    worker.process.join(5)
        for worker in waiting.values():
            worker.late = True
            worker.process.kill()

    def _measure(self, workers: Sequence[_Worker]) -> list[Row]:
        """Samples the models alternately; returns the rows of those without errors."""
        pairs = [(one, number) for one in workers for number in range(len(_ready(one).rows))]
        samples: dict[int, list[float]] = {index: [] for index in range(len(pairs))}
        errors: dict[int, str] = {}

        def ask(what: str, index: int) -> Any:
            worker, number = pairs[index]
            answer = worker.ask(what, number, self.options.sample_seconds)
            if isinstance(answer, str):
                errors[index] = answer
                del samples[index]
                batch = _ready(worker).rows[number]["asked_batch_size"]
                self._fail(worker.job, batch, answer)
            return answer

        for _ in range(self.options.repeats):
            for index in list(samples):
                answer = ask("sample", index)
                if index in samples:
                    samples[index].append(answer)
        rows = []
        for index in list(samples):
            columns = ask("latencies", index)
            if index in samples:
                worker, number = pairs[index]
                ready = _ready(worker)
                self.facts |= ready.facts
                rows.append(_row(ready, number, samples[index], columns))
        return rows

    def _reasons(self, workers: Iterable[_Worker]) -> list[Job]:
        """Notes why batches have no row; returns the jobs that are to be repeated alone."""
        crowded = []
        for worker in workers:
            job = worker.job
            if worker.late:
                self.left.append(job)
            elif worker.ready is None:
                for batch in job.batch_sizes:
                    self._fail(job, batch, f"ended with status {worker.process.exitcode}")
            else:
                memory = []
                for batch, reason in worker.ready.failed.items():
                    if reason == MEMORY and not job.alone:
                        memory.append(batch)
                    else:
                        self._fail(job, batch, reason)
                if memory:
                    crowded.append(dataclasses.replace(job, batch_sizes=tuple(memory), alone=True))
        return crowded

    def _fail(self, job: Job, batch: int, reason: str) -> None:
        row = {"model": job.name, "image_size": job.image_size, "asked_batch_size": batch}
        self.failed.append(row | {"reason": reason})

    def _write(self) -> None:
        from vig_jax.bench.throughput import write_tables

        facts = {**self.facts, "failed": self.failed}
        write_tables(facts, self.rows, json_file=self.options.json, csv_file=None)


def _chunks(jobs: Sequence[Job], size: int) -> Iterator[Sequence[Job]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]


def _ready(worker: _Worker) -> Ready:
    assert worker.ready is not None
    return worker.ready


def _row(ready: Ready, number: int, samples: list[float], columns: dict[str, Any]) -> Row:
    """Returns the row of a batch, with speed, latencies and share of the device's peak."""
    from vig_jax.bench.throughput import peak_flops, spread

    row = dict(ready.rows[number])
    median = statistics.median(samples)
    peak = peak_flops(ready.device_kind)
    row["img_per_s"] = row["batch_size"] / median
    row["ms"], row["ms_spread"] = 1e3 * median, 1e3 * spread(samples)
    row["mfu"] = row["img_per_s"] * row["flops"] / peak if peak else None
    return row | columns


_HEAD = (
    f"{'model':30} {'as':27} {'pixels':>6} {'batch':>5} {'img/s':>9} {'ms':>9} {'+-':>7} "
    f"{'waited':>8} {'pixels':>7} {'fetch':>7} {'answer':>8} {'MB':>7}"
)


def _text(row: Row) -> str:
    """Returns the line of a row; see `_HEAD`."""
    return (
        f"{row['model']:30} {row['variant']:27} {row['image_size']:6} {row['batch_size']:5} "
        f"{row['img_per_s']:9.1f} {row['ms']:9.3f} {row['ms_spread']:7.3f} "
        f"{row['waited_ms']:8.3f} {row['pixels_ms']:7.3f} {row['fetch_ms']:7.3f} "
        f"{row['answer_ms']:8.3f} {row['memory_bytes'] / 1e6:7.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
