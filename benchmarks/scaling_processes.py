"""Runs `benchmarks.scaling` with one process per GPU.

For each number of GPUs it starts a group of processes of the benchmark, one per GPU. All compile at
the same time. Then one group after the other measures, because autotuning would disturb it.
"""

import argparse
import dataclasses
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from benchmarks.scaling_cases import Measured

_COMPILED, _GO = "compiled", "go"  # files by which a group waits for the others
_GRACE = 30.0  # seconds after --minutes; then processes are killed
_POLL = 0.1


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the options of a process of a group, which people do not set."""
    parser.add_argument("--rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--coordinator", help=argparse.SUPPRESS)


def join(options: argparse.Namespace) -> None:
    """Connects this process with the others of its group; call before JAX knows its devices."""
    import jax

    (count,) = options.gpus
    if count > 1:
        jax.distributed.initialize(
            options.coordinator, count, options.rank, local_device_ids=[options.rank]
        )


def wait_for_turn(folder: Path, rank: int) -> None:
    """Reports that this process has compiled, and waits until its group may measure."""
    (folder / f"{_COMPILED}-{rank}").touch()
    while not (folder / _GO).exists():
        time.sleep(_POLL)


def write_outputs(measured: dict[tuple[str, int], "Measured"], folder: Path) -> None:
    """Writes the first outputs of programs, to be compared with those of another group."""
    arrays = {
        f"{case}/{name}": value
        for (case, _), found in measured.items()
        for name, value in found.outputs.items()
    }
    np.savez(folder / "outputs.npz", **arrays)  # type: ignore[arg-type]


def read_outputs(folder: Path) -> dict[str, dict[str, np.ndarray]]:
    """Returns what `write_outputs` has written: the outputs of each case by name."""
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(folder / "outputs.npz") as arrays:
        for key, value in arrays.items():
            case, _, name = key.rpartition("/")
            found.setdefault(case, {})[name] = value
    return found


@dataclasses.dataclass
class Group:
    """The processes of one number of GPUs.

    Attributes:
        count: number of GPUs and of processes.
        folder: of their files; the first process writes its results there.
        processes: in the order of their ranks.
    """

    count: int
    folder: Path
    processes: list["subprocess.Popen[bytes]"]

    @property
    def ended(self) -> bool:
        """Returns True if no process runs."""
        return all(process.poll() is not None for process in self.processes)

    @property
    def broken(self) -> bool:
        """Returns True if a process has failed without results."""
        return any(process.poll() not in (None, 0, 1) for process in self.processes)

    @property
    def compiled(self) -> bool:
        """Returns True if all processes have compiled their programs, or one has ended."""
        done = all((self.folder / f"{_COMPILED}-{rank}").exists() for rank in range(self.count))
        return done or any(process.poll() is not None for process in self.processes)

    def kill(self) -> None:
        """Ends what still runs."""
        for process in self.processes:
            process.kill()
            process.wait()


def run_groups(options: argparse.Namespace, counts: Sequence[int]) -> list[Group]:
    """Starts a group for each number of GPUs and returns them when all have ended.

    Args:
        options: of the command line.
        counts: numbers of GPUs, the most important first.
    """
    end = time.monotonic() + 60 * options.minutes + _GRACE
    groups = []
    try:
        for count in counts:
            groups.append(_start(options, count))
        while not all(group.compiled for group in groups) and time.monotonic() < end:
            time.sleep(_POLL)
        for group in groups:
            (group.folder / _GO).touch()
            print(f"measuring on {group.count} ({group.folder}/*.log)", flush=True)
            while not (group.ended or group.broken) and time.monotonic() < end:
                time.sleep(_POLL)
            group.kill()
    finally:
        for group in groups:
            group.kill()
    return groups


def _start(options: argparse.Namespace, count: int) -> Group:
    folder = options.out / f"{count}_processes"
    folder.mkdir(parents=True, exist_ok=True)
    for left in (*folder.glob(f"{_COMPILED}-*"), folder / _GO, folder / "rows.json"):
        left.unlink(missing_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.scaling", "--minutes", str(options.minutes)]
    command += ["--gpus", str(count), "--sample-seconds", str(options.sample_seconds)]
    command += ["--coordinator", f"127.0.0.1:{port}", "--out", str(folder)]
    command += ["--threads", str(options.threads)] if options.threads else []
    command += ["--tiny"] if options.tiny else []
    command += ["--only", *options.only] if options.only else []
    # A process has one simulated device.
    flags = re.sub(
        r"(--xla_force_host_platform_device_count)=\d+", r"\1=1", os.environ.get("XLA_FLAGS", "")
    )
    processes = []
    for rank in range(count):
        with (folder / f"{rank}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [*command, "--rank", str(rank)],
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "XLA_FLAGS": flags},
                )
            )
    return Group(count, folder, processes)


def failure(group: Group) -> str | None:
    """Returns the last words of a group without results, in one line; None: it has results."""
    if (group.folder / "rows.json").exists() and (group.folder / "outputs.npz").exists():
        return None
    words: list[str] = []
    for log in sorted(group.folder.glob("*.log")):
        words += log.read_text(errors="replace").split("\n")[-3:]
    return f"{group.count} processes: " + " ".join(" ".join(words).split())[:300]
