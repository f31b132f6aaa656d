"""Reads from a profile how much of the communication between GPUs computation hides."""

import dataclasses
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

Interval = tuple[float, float]
"""Begin and end."""

# NCCL's kernels, XLA's own kernels of collectives, and copies from GPU to GPU.
_COMMUNICATION = re.compile(
    r"nccl|memcpyp2p|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all|collective|ragged",
    re.IGNORECASE,
)


@dataclasses.dataclass(frozen=True)
class Timeline:
    """The work of one GPU during a profile, in milliseconds of a call.

    Attributes:
        device: the profiler's name of the GPU.
        span_ms: from the begin of the first kernel to the end of the last.
        compute_ms: at least one kernel or copy computed that is no communication.
        communication_ms: at least one kernel exchanged data; it may have waited for other GPUs.
        exposed_ms: of these, those in which nothing computed.
        idle_ms: nothing ran.
        kernels: milliseconds by name, the longest first.
    """

    device: str
    span_ms: float
    compute_ms: float
    communication_ms: float
    exposed_ms: float
    idle_ms: float
    kernels: dict[str, float]


def profile(run: Callable[[int], None], calls: int) -> list[Timeline]:
    """Profiles some calls of a program that is compiled.

    Args:
        run: makes that many calls, then waits; see `kernels_pallas.core.timing.Candidate`.
        calls: number of calls.

    Returns:
        The timeline of each GPU; none where there is no GPU.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            run(calls)
        (file,) = Path(folder).rglob("*.xplane.pb")
        return timelines(jax.profiler.ProfileData.from_file(str(file)), calls)


def timelines(data: Any, calls: int) -> list[Timeline]:
    """Returns the timeline of each GPU in a profile.

    Args:
        data: a `jax.profiler.ProfileData`.
        calls: number of calls that were profiled; the numbers are those of one.
    """
    found = []
    for plane in data.planes:
        if "GPU" not in plane.name:
            continue
        events = [
            (event.name, event.start_ns / 1e6, (event.start_ns + event.duration_ns) / 1e6)
            for line in plane.lines
            if "Stream" in line.name
            for event in line.events
        ]
        if events:
            found.append(_timeline(plane.name, events, calls))
    return sorted(found, key=lambda one: one.device)


def _timeline(device: str, events: Sequence[tuple[str, float, float]], calls: int) -> Timeline:
    both: dict[bool, list[Interval]] = {False: [], True: []}
    kernels: dict[str, float] = {}
    for name, begin, end in events:
        both[bool(_COMMUNICATION.search(name))].append((begin, end))
        kernels[name] = kernels.get(name, 0.0) + (end - begin) / calls
    compute, communication = merged(both[False]), merged(both[True])
    anything = merged([*compute, *communication])
    span = anything[-1][1] - anything[0][0]
    busy = length(anything)
    return Timeline(
        device=device,
        span_ms=span / calls,
        compute_ms=length(compute) / calls,
        communication_ms=length(communication) / calls,
        exposed_ms=(busy - length(compute)) / calls,
        idle_ms=(span - busy) / calls,
        kernels=dict(sorted(kernels.items(), key=lambda item: -item[1])),
    )


def merged(intervals: Iterable[Interval]) -> list[Interval]:
    """Returns the union of intervals as disjoint intervals, sorted."""
    union: list[Interval] = []
    for begin, end in sorted(intervals):
        if union and begin <= union[-1][1]:
            union[-1] = (union[-1][0], max(union[-1][1], end))
        else:
            union.append((begin, end))
    return union


def length(intervals: Iterable[Interval]) -> float:
    """Returns the total length of disjoint intervals."""
    return sum(end - begin for begin, end in intervals)
