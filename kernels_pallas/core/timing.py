"""Timing of contestants in turn, of whatever framework, and what to say of where it was done."""

import dataclasses
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Contestant = Callable[[int], None]
"""Makes so many calls back to back, without waiting in between, and then waits for the device."""


def contestant(call: Callable[[], Any]) -> Contestant:
    """Of a function that starts the next call of a JAX program and returns its result."""

    def run(calls: int) -> None:
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)

    return run


def interleaved(
    contestants: Mapping[str, Contestant], *, repeats: int, sample_seconds: float
) -> dict[str, list[float]]:
    """Seconds per call: `repeats` samples of each, taken in turns so that drift hits all alike.

    One call before each sample is not counted: it gets back the memory that the others gave away.

    Args:
        contestants: by name.
        repeats: samples of each.
        sample_seconds: a sample is as many calls as fill this, at least one.
    """
    calls = {}
    for name, run in contestants.items():
        run(1)  # compile
        calls[name] = max(1, round(sample_seconds / max(1e-6, _seconds(run, 1))))
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(repeats):
        for name, run in contestants.items():
            run(1)
            seconds[name].append(_seconds(run, calls[name]))
    return seconds


def _seconds(run: Contestant, calls: int) -> float:
    start = time.perf_counter()
    run(calls)
    return (time.perf_counter() - start) / calls


@dataclasses.dataclass(frozen=True)
class Kernel:
    """What a GPU ran under one name in a call of a program, copies included.

    Attributes:
        name: of the kernel.
        calls: of it in one call of the program, on average.
        us: of all of these, in microseconds.
    """

    name: str
    calls: float
    us: float


def kernels(run: Contestant, calls: int = 4) -> list[Kernel]:
    """Profiles some calls; longest first, and none where there is no GPU."""
    run(1)  # compile
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(calls)
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        profile = jax.profiler.ProfileData.from_file(str(file))
    times: dict[str, list[float]] = {}
    for plane in profile.planes:
        for line in plane.lines if "GPU" in plane.name else ():
            for event in line.events if "Stream" in line.name else ():
                times.setdefault(event.name, []).append(event.duration_ns)
    found = [Kernel(name, len(t) / calls, sum(t) / calls / 1e3) for name, t in times.items()]
    return sorted(found, key=lambda kernel: -kernel.us)


def commit() -> str:
    """The commit of this checkout, "-dirty" with changes, or "unknown"."""
    return _said("git", "describe", "--always", "--dirty") or "unknown"


def driver() -> str:
    """The version of NVIDIA's driver, or "none"."""
    lines = _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return lines.splitlines()[0] if lines else "none"


def _said(*command: str) -> str:
    """What a command prints; nothing if it fails or is not there."""
    try:
        done = subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
