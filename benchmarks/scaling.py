r"""Measures how models scale over the GPUs of one machine, in bfloat16.

  python -m benchmarks.scaling --minutes 9 --out scaling
  python -m benchmarks.scaling --minutes 9 --out scaling --processes
  python -m benchmarks.scaling --only "vig_s training" fsdp --gpus 8 1 --out scaling
  XLA_FLAGS=--xla_force_host_platform_device_count=8 JAX_PLATFORMS=cpu \
      python -m benchmarks.scaling --tiny --out /tmp/scaling

Rows are training steps of `train.py` (forward, backward, AdamW, EMA) and inference of images whose
rows are split over the GPUs. Pixels are random and lie on the GPUs. Each GPU gets the same number
of images, except where rows are split: there all GPUs share one image. There is no augmentation,
and no drop path or dropout: all GPUs get equal images, so loss and gradient norm of the first step
must be those of one GPU, and the logits of split images those of whole ones. One row trains from
JPEG files of 500 x 375 pixels that are decoded, cropped and flipped meanwhile, on all cores but
two.

All programs are compiled first, the most important ones first, --threads at a time; then they are
measured in the same order, largest and smallest number of GPUs before those between. What does not
fit into --minutes is dropped, the least important first, and named at the end. With
JAX_COMPILATION_CACHE_DIR set to a folder, a later call on the same machine reads the programs of
earlier ones.

One process runs all GPUs. With --processes there is one process for each GPU, as Slurm and Open MPI
start them; profiles are those of the first GPU then.

  img/s       calls queued back to back: the median of three samples
  ms, waited  milliseconds of a call, queued, and if the host waits for each
  speed-up    speed over that of one GPU
  effic.      speed-up over the number of GPUs
  exposed     share of the time in which a GPU exchanged data and did not compute, from a profile
              of three calls, of the GPU where it is largest; waiting for other GPUs counts as well
  state       MB of parameters, optimizer and EMA on a GPU
  program     MB of the compiled program on a GPU: arguments, results and temporaries, as XLA plans
  error       largest relative difference of the first results from those of one GPU

--out gets rows.json, written after each row, and kernels.txt, the longest kernels of each row. The
exit status is 1 if a program failed or its results differ by more than is allowed.
"""

import argparse
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import scaling_processes

if TYPE_CHECKING:
    from benchmarks.scaling_cases import Case, Measured, Work

# Shares of the time after which no program is lowered, and the compilation of none begins.
_LOWERED, _COMPILED = 0.55, 0.7
_KERNELS = 60  # of a row, in the file

Row = dict[str, Any]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    options = _options(argv)
    from vig_jax.errors import REPORTED_ERRORS
    from vig_jax.text import escape_output

    escape_output()
    try:
        if options.rank is not None:
            scaling_processes.join(options)
        return (Processes(options) if options.processes else Scaling(options)).run()
    except REPORTED_ERRORS as error:
        print(f"scaling.py: {error}", file=sys.stderr)
        return 1


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=9.0, help="of the whole run (default 9)")
    parser.add_argument(
        "--gpus", type=int, nargs="+", help="numbers of GPUs (default: 1, 2, 4, ... up to all)"
    )
    parser.add_argument(
        "--only", nargs="+", metavar="TEXT", help="rows whose names contain it, and what they need"
    )
    parser.add_argument(
        "--threads", type=int, help="programs compiled at a time (default: cores/8)"
    )
    parser.add_argument(
        "--processes", action="store_true", help="one process for each GPU, instead of one for all"
    )
    scaling_processes.add_options(parser)
    parser.add_argument("--sample-seconds", type=float, default=0.7, help="(default 0.7)")
    parser.add_argument("--tiny", action="store_true", help="small models and images, for trying")
    parser.add_argument("--out", type=Path, required=True, help="folder of the results")
    return parser.parse_args(argv)


class Scaling:
    """A run of the benchmark.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        import jax

        from benchmarks.scaling_cases import CASES, tiny
        from vig_jax.errors import ConfigError

        self.options = options
        self.begun = time.monotonic()
        self.devices = jax.devices()
        self.counts = options.gpus or _powers(len(self.devices))
        if not 1 <= min(self.counts) <= max(self.counts) <= len(self.devices):
            raise ConfigError(
                f"--gpus is {' '.join(map(str, self.counts))}; there are {len(self.devices)}: "
                f"give numbers from 1 to {len(self.devices)}"
            )
        only = options.only or [""]
        chosen = [case for case in CASES if any(text in case.name for text in only)]
        needed = {name for case in chosen for name in (case.name, case.reference)}
        self.cases = [case for case in CASES if case.name in needed]
        if not self.cases:
            names = ", ".join(case.name for case in CASES)
            raise ConfigError(f"--only {' '.join(only)} fits none of the rows ({names})")
        if options.tiny:
            self.cases = [tiny(case) for case in self.cases]
        self.rows: list[Row] = []
        self.failed: list[str] = []
        self.dropped: list[str] = []
        self.measured: dict[tuple[str, int], Measured] = {}
        self.longest = 0.0

    def run(self) -> int:
        """Compiles, measures and prints; returns the exit status."""
        from benchmarks import table

        self.facts = table.facts() | {"devices": len(self.devices)}
        self._write()  # fail now if it cannot be written
        works = self._compiled()
        self.facts["compiled_seconds"] = round(time.monotonic() - self.begun)
        if self.options.rank is not None:
            scaling_processes.wait_for_turn(self.options.out, self.options.rank)
        self._measure(works)
        if not self.options.rank:
            self._print()
        return int(bool(self.failed))

    def _pairs(self) -> list[tuple["Case", int]]:
        """Returns the rows, most important first: the extremes of all cases, then the others."""
        ordered = sorted(set(self.counts), reverse=True)
        extremes = list(dict.fromkeys([ordered[0], ordered[-1]]))
        between = [count for count in ordered if count not in extremes]
        pairs = [(case, count) for counts in (extremes, between) for case in self.cases
                 for count in counts]  # fmt: skip
        # One GPU has no axis to split: the reference is another case.
        pairs = [(case, count) for case, count in pairs if count > 1 or not case.base]
        # The program of another row is there by then, on the largest number of GPUs.
        files = [case for case, count in pairs if case.files and count == ordered[0]]
        kept = [(case, count) for case, count in pairs if not case.files]
        return kept + [(case, ordered[0]) for case in files]

    def _compiled(self) -> list["Work"]:
        """Compiles the programs in time; returns those that are compiled."""
        from benchmarks.scaling_cases import agreed_by_all, work_of

        seconds = 60 * self.options.minutes
        threads = self.options.threads or max(1, min(16, (os.cpu_count() or 1) // 8))
        futures: list[tuple[Work, Future[Any]]] = []
        works: list[Work | None] = []
        with ThreadPoolExecutor(threads) as pool:
            for case, count in self._pairs():
                works.append(None)
                if time.monotonic() > self.begun + _LOWERED * seconds:
                    self.dropped.append(_name(case, count))
                    continue
                name, small = _name(case, count), self.options.tiny
                make = functools.partial(work_of, case, self.devices[:count], small=small)
                works[-1] = work = self._try(name, make)
                if case.files:
                    of_base = [future for other, future in futures if other.case.name == case.base
                               and other.mesh.size == count]  # fmt: skip
                    futures += [(work, future) for future in of_base]
                elif work and (lowered := self._try(name, work.lower)):
                    futures.append((work, pool.submit(lowered.compile)))
            end = self.begun + _COMPILED * seconds
            done = {id(work) for work, future in futures if self._wait(work, future, end)}
        # Programs that another process lacks are not run.
        everywhere = agreed_by_all([id(work) in done for work in works])
        return [work for work, there in zip(works, everywhere, strict=True) if work and there]

    def _wait(self, work: "Work", future: "Future[Any]", end: float) -> bool:
        """Waits for a program; those that no thread has begun in time are dropped."""
        name = _name(work.case, work.mesh.size)
        while not future.done():
            if time.monotonic() > end and future.cancel():
                self.dropped.append(name)
                return False
            time.sleep(0.05)
        work.compiled = self._try(name, future.result)
        return work.compiled is not None

    def _measure(self, works: Sequence["Work"]) -> None:
        """Measures the programs in time, and writes each row."""
        import jax

        from benchmarks.scaling_cases import Inputs, agreed, measure
        from benchmarks.scaling_records import measure_records

        inputs = Inputs(jax.local_devices()[0])
        end = self.begun + 60 * self.options.minutes
        name = f"kernels-{self.options.rank}.txt" if self.options.rank else "kernels.txt"
        kernels = (self.options.out / name).open("w")
        with kernels:
            for work in works:
                name = _name(work.case, work.mesh.size)
                begun = time.monotonic()
                if agreed(begun + 1.2 * self.longest > end):
                    self.dropped.append(name)
                    continue
                seconds = self.options.sample_seconds
                found = self._try(
                    name,
                    functools.partial(measure_records, work, inputs, seconds=10 * seconds)
                    if work.case.files
                    else functools.partial(measure, work, inputs, seconds=seconds),
                )
                work.compiled = None  # frees its memory
                self.longest = max(self.longest, time.monotonic() - begun)
                if found:
                    self.measured[work.case.name, work.mesh.size] = found
                    self.rows.append(found.row)
                    print(f"{time.monotonic() - self.begun:5.0f} s  {name}", flush=True)
                    kernels.writelines(_kernel_lines(name, found))
                    self._compare()
                    self._write()

    def _compare(self) -> None:
        """Adds what needs the row of one GPU, as soon as both rows are there."""
        from benchmarks.scaling_cases import ALLOWED_ERRORS, differences

        for case in self.cases:
            one = self.measured.get((case.reference, 1))
            for (name, count), found in self.measured.items():
                row = found.row
                if name != case.name or one is None or "efficiency" in row:
                    continue
                row["speedup"] = row["img_per_s"] / one.row["img_per_s"]
                row["efficiency"] = row["speedup"] / count
                if case.files:
                    continue  # of other images
                errors = differences(found, one)
                row["errors"] = errors
                if wrong := {k: e for k, e in errors.items() if not e <= ALLOWED_ERRORS[k]}:
                    self.failed.append(f"{_name(case, count)}: differs from one GPU by {wrong}")

    def _try(self, name: str, function: Callable[[], Any]) -> Any:
        """Calls a function; an error is noted, and the result is None."""
        try:
            return function()
        except Exception as error:  # the other rows continue
            self.failed.append(f"{name}: {type(error).__name__}: {str(error).strip()[:300]}")
            print(f"failed: {self.failed[-1]}", file=sys.stderr, flush=True)
            return None

    def _write(self) -> None:
        if self.options.rank:
            return  # the first process writes
        from vig_jax.bench.throughput import write_tables

        facts = {**self.facts, "failed": self.failed, "dropped": self.dropped}
        write_tables(facts, self.rows, json_file=self.options.out / "rows.json", csv_file=None)
        if self.options.rank == 0:
            scaling_processes.write_outputs(self.measured, self.options.out)

    def _print(self) -> None:
        """Prints what failed and was dropped, and the table last."""
        self._write()
        print(", ".join(f"{name} {value}" for name, value in self.facts.items()))
        for kind, texts in (("failed", self.failed), ("dropped for lack of time", self.dropped)):
            for text in texts:
                print(f"{kind}: {text}")
        print(_HEAD)
        names = [case.name for case in self.cases]
        for row in sorted(self.rows, key=lambda row: (names.index(row["case"]), row["gpus"])):
            print(_text(row))


class Processes(Scaling):
    """A run of the benchmark with one process for each GPU.

    Args:
        options: of the command line.
    """

    def __init__(self, options: argparse.Namespace):
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the groups share the GPUs
        super().__init__(options)

    def run(self) -> int:
        """Runs the groups, compares and prints; returns the exit status."""
        from benchmarks import table
        from benchmarks.scaling_cases import Measured

        self.facts = table.facts() | {"devices": len(self.devices), "processes": "one per GPU"}
        self._write()
        order = sorted(set(self.counts), reverse=True)
        counts = list(dict.fromkeys([order[0], order[-1], *order]))
        for group in scaling_processes.run_groups(self.options, counts):
            if (reason := scaling_processes.failure(group)) is not None:
                self.failed.append(reason)
                continue
            written = json.loads((group.folder / "rows.json").read_text())
            self.failed += written["failed"]
            self.dropped += written["dropped"]
            outputs = scaling_processes.read_outputs(group.folder)
            for row in written["rows"]:
                found = Measured(row, outputs[row["case"]], [])
                self.measured[row["case"], row["gpus"]] = found
                self.rows.append(row)
        self._compare()
        self._print()
        return int(bool(self.failed))


def _powers(count: int) -> list[int]:
    """Returns the powers of two up to a number, and the number."""
    return sorted({1 << shift for shift in range(count.bit_length())} | {count})


def _name(case: "Case", count: int) -> str:
    return f"{case.name} on {count}"


def _kernel_lines(name: str, found: "Measured") -> list[str]:
    """Returns the timelines of the GPUs, and the longest kernels of the first."""
    lines = [f"{name}: milliseconds of a call\n"]
    for one in found.timelines:
        lines.append(
            f"  {one.device}: {one.span_ms:.3f}, of these computing {one.compute_ms:.3f}, "
            f"communicating {one.communication_ms:.3f} (alone {one.exposed_ms:.3f}), idle "
            f"{one.idle_ms:.3f}\n"
        )
    for one in found.timelines[:1]:
        lines += [
            f"  {ms:10.4f}  {kernel}\n" for kernel, ms in list(one.kernels.items())[:_KERNELS]
        ]
    return lines


_HEAD = (
    f"{'row':34} {'gpus':>4} {'images':>6} {'img/s':>9} {'ms':>8} {'waited':>8} {'speed-up':>8} "
    f"{'effic.':>6} {'exposed':>7} {'state MB':>8} {'prog. MB':>8} {'error':>8}"
)


def _text(row: Row) -> str:
    """Returns the line of a row; see `_HEAD`."""

    def cell(value: Any, form: str, width: int) -> str:
        return f"{'-' if value is None else format(value, form):>{width}}"

    state = row["state_bytes"]
    error = max(row["errors"].values()) if "errors" in row else None
    return (
        f"{row['case']:34} {row['gpus']:4} {row['images']:6} {row['img_per_s']:9.1f} "
        f"{row['ms']:8.2f} {cell(row['waited_ms'], '.2f', 8)} "
        f"{cell(row.get('speedup'), '.2f', 8)} "
        f"{cell(row.get('efficiency'), '.3f', 6)} "
        f"{cell(row['exposed_share'], '.1%', 7)} "
        f"{cell(None if state is None else state / 1e6, '.1f', 8)} "
        f"{row['program_bytes'] / 1e6:8.1f} {cell(error, '.1e', 8)}"
    )


if __name__ == "__main__":
    sys.exit(main())
