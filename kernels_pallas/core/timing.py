"""Times programs of any framework in rounds, and describes the machine."""

import dataclasses
import pathlib
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax

Candidate = Callable[[int], None]
"""Makes that many calls back to back without waiting in between, then waits for the device."""


def candidate(call: Callable[[], Any]) -> Candidate:
    """Makes a candidate of a function that starts a JAX program and returns its result."""

    def run(calls: int) -> None:
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)

    return run


def interleaved(
    candidates: Mapping[str, Candidate],
    *,
    repeats: int,
    sample_seconds: float,
    agree: Callable[[int], int] = int,
) -> dict[str, list[float]]:
    """Times candidates in rounds, so that drift affects all of them alike.

    One call before each sample is not counted: it allocates memory that other candidates freed.

    Args:
        candidates: Candidates by name.
        repeats: Rounds: samples of each candidate.
        sample_seconds: Length of a sample; it is at least one call.
        agree: Returns the same number in all processes that run the programs together.

    Returns:
        Seconds per call, a list of samples for each candidate.
    """
    calls = {}
    for name, run in candidates.items():
        run(1)  # compile
        calls[name] = agree(max(1, round(sample_seconds / max(1e-6, _seconds(run, 1)))))
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(repeats):
        for name, run in candidates.items():
            run(1)
            seconds[name].append(_seconds(run, calls[name]))
    return seconds


def _seconds(run: Candidate, calls: int) -> float:
    start = time.perf_counter()
    run(calls)
    return (time.perf_counter() - start) / calls


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel or copy that a GPU ran during a call of a program.

    Attributes:
        name: The kernel's name.
        calls: Its calls in one call of the program, on average.
        us: Microseconds of all of these calls.
    """

    name: str
    calls: float
    us: float


def kernels(run: Candidate, calls: int = 4) -> list[Kernel]:
    """Profiles some calls; returns the longest kernel first, and none where there is no GPU."""
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
    """Returns the commit of this checkout, with "-dirty" if it has changes, or "unknown"."""
    return _output_of("git", "describe", "--always", "--dirty") or "unknown"


def driver() -> str:
    """Returns the version of NVIDIA's driver, or "none"."""
    lines = _output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return lines.splitlines()[0] if lines else "none"


def _output_of(*command: str) -> str:
    """Returns what a command prints; "" if it fails or is missing."""
    try:
        done = subprocess.run(
            command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
