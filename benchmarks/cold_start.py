"""Measures the time from a command to its first result, with empty and with warm caches.

  python -m benchmarks.cold_start
  python -m benchmarks.cold_start --config configs/vig_h_t.py --batch-size 128 --json start.json
  python -m benchmarks.cold_start --config configs/fashion_mnist.py --batch-size 32 \
      -- --config.model.depth=1

`train.py` makes two updates in a fresh process on images of noise. Then `vig predict` classifies
one photograph with that run, in another process. Both happen twice: with empty caches of compiled
programs, and with the caches that the first process has left. Options after `--` are for train.py.

The seconds of tracing, lowering and compiling are those that JAX logs. Programs are compiled side
by side, so their sum is more than what passes. "first update" is the time from the command until
the first update is done, and "CPU" that of all threads until the end of the process.
"""

import argparse
import dataclasses
import io
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
PROGRAMS = {
    "initial": "initial state",
    "prepare_inputs": "augmentation",
    "gradients": "gradients",
    "update_state": "AdamW and EMA",
    "predict": "evaluation",
    "preview_inputs": "first batch's figure",
    "logits": "inference",
}
"""The functions that are compiled, by their names in JAX's log, and what they are."""
STAGES = {
    "Finished tracing": "trace",
    "Finished jaxpr to MLIR module conversion": "lower",
    "Finished XLA compilation of": "compile",
}
_STAGE = re.compile(rf"({'|'.join(STAGES)}) (?:jit\()?(\w+)\)?.* in ([0-9.]+) sec")
_FIRST_UPDATE = "first update done"
_VIG = "import sys; from vig_jax.cli.main import main; sys.exit(main())"
_IMPORTS = "import vig_jax.train.loop"
_DEVICES = f"{_IMPORTS}, jax; jax.devices()"


@dataclasses.dataclass
class Start:
    """The seconds of a process.

    Attributes:
        stages: by "trace", "lower" or "compile" and the name of the program.
        first_log: from the command until JAX traced its first function.
        first_update: until the first update was done; None if there was none.
        end: until the process ended.
        cpu: CPU time of all of its threads and child processes.
    """

    stages: dict[str, float]
    first_log: float | None
    first_update: float | None
    end: float
    cpu: float


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cold_start",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", default="configs/vig_s.py", help="(default configs/vig_s.py)")
    parser.add_argument("--batch-size", type=int, default=256, help="(default 256)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the seconds here")
    parser.add_argument("train_options", nargs="*", metavar="-- OPTION", help="for train.py")
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="vig-cold-start-") as folder:
        rows = measure(Path(folder), options.config, options.batch_size, options.train_options)
    print(table(rows))
    if options.json:
        options.json.write_text(json.dumps({k: dataclasses.asdict(v) for k, v in rows.items()}))
    return 0


def measure(
    folder: Path, config: str, batch_size: int, train_options: Sequence[str]
) -> dict[str, Start]:
    """Runs the commands, and returns their seconds by the name of the column.

    Args:
        folder: an empty folder for caches and runs.
        config: the page of the run.
        batch_size: images of an update.
        train_options: more options for `train.py`.

    Raises:
        CalledProcessError: a command failed.
    """
    train = [
        str(ROOT / "train.py"),
        f"--config={config}",
        "--config.data.source=synthetic",
        f"--config.train.batch_size={batch_size}",
        "--config.train.epochs=0",
        "--config.train.steps=2",
        "--config.train.eval_every_epochs=0",
        "--config.optimizer.warmup_epochs=0",
        f"--config.train.compilation_cache={folder / 'programs'}",
        *train_options,
    ]
    photo = folder / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    Image.fromarray(noise).save(photo)
    rows = {"imports": start(["-c", _IMPORTS], folder)}
    rows["and devices"] = start(["-c", _DEVICES], folder)
    for kind in ("cold", "warm"):
        rows[f"train, {kind}"] = start([*train, f"--workdir={folder / kind}"], folder)
    for kind in ("cold", "warm"):
        predict = ["-c", _VIG, "predict", str(folder / "cold"), str(photo)]
        rows[f"predict, {kind}"] = start(predict, folder)
    return rows


def start(arguments: Sequence[str], folder: Path) -> Start:
    """Runs Python with arguments in a fresh process, and reads JAX's log.

    Args:
        arguments: of the interpreter.
        folder: for the caches of the driver and of Numba.

    Raises:
        CalledProcessError: the exit status is not 0; its output is printed.
    """
    environment = os.environ | {
        "JAX_LOG_COMPILES": "1",
        "CUDA_CACHE_PATH": str(folder / "cuda"),
        "NUMBA_CACHE_DIR": str(folder / "numba"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    seen, begin = Start({}, None, None, 0.0, 0.0), time.perf_counter()
    cpu, output = _children_cpu(), io.StringIO()
    command = [sys.executable, *arguments]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            read_line(line, time.perf_counter() - begin, seen)
            output.write(line)
    status = process.returncode
    seen.end, seen.cpu = time.perf_counter() - begin, _children_cpu() - cpu
    if status:
        print(output.getvalue(), file=sys.stderr)
        raise subprocess.CalledProcessError(status, command)
    return seen


def read_line(line: str, seconds: float, seen: Start) -> None:
    """Adds what a line of a log says.

    Args:
        line: of the console.
        seconds: since the process began.
        seen: is changed.
    """
    if line.startswith(_FIRST_UPDATE):
        seen.first_update = seconds
    if found := _STAGE.search(line):
        seen.first_log = seconds if seen.first_log is None else seen.first_log
        stage, program, value = found.groups()
        if program in PROGRAMS:  # each line may be printed by two handlers
            seen.stages[f"{STAGES[stage]} {program}"] = float(value)


def table(starts: Mapping[str, Start]) -> str:
    """Returns the seconds of each process as a column."""
    rows: dict[str, list[float | None]] = {}
    for stage in ("trace", "lower", "compile"):
        for program, text in PROGRAMS.items():
            values = [each.stages.get(f"{stage} {program}") for each in starts.values()]
            if any(value is not None for value in values):
                rows[f"{stage}: {text}"] = values
    columns = list(starts.values())
    rows = {
        "before the first trace": [each.first_log for each in columns],
        **rows,
        "first update": [each.first_update for each in columns],
        "end of the process": [each.end for each in columns],
        "CPU": [each.cpu for each in columns],
    }
    lines = [f"{'seconds':30}" + "".join(f"{name:>15}" for name in starts)]
    for name, values in rows.items():
        cells = ("" if value is None else f"{value:.2f}" for value in values)
        lines.append(f"{name:30}" + "".join(f"{cell:>15}" for cell in cells))
    return "\n".join(line.rstrip() for line in lines)


def _children_cpu() -> float:
    """Returns the CPU seconds of the child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    sys.exit(main())
