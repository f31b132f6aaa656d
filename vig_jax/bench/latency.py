"""Latencies of one call: queued, waited for, and from pixels on the host to results on the host."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

from kernels_pallas.core.timing import Candidate, interleaved


@dataclasses.dataclass(frozen=True)
class HostCall:
    """One call in steps, from pixels on the host to results on the host.

    Attributes:
        put: starts the copy of a batch of pixels to the device; returns them on the device.
        start: starts a call on pixels of the device; returns its results, which nobody has fetched.
        wait: waits until arrays on the device are complete.
        fetch: waits for results and copies them to the host.
        answer: makes the whole call, as a user would; None: by `put`, `start` and `fetch`.
    """

    put: Callable[[], Any]
    start: Callable[[Any], Any]
    wait: Callable[[Any], Any]
    fetch: Callable[[Any], Any]
    answer: Callable[[], Any] | None = None

    def answered(self) -> Any:
        """Returns results on the host for pixels on the host."""
        return self.answer() if self.answer else self.fetch(self.start(self.put()))


@dataclasses.dataclass(frozen=True)
class Latency:
    """Milliseconds of one call; medians.

    Attributes:
        queued_ms: calls are queued back to back, and the host waits for the last one: the time
            divided by the number of calls.
        waited_ms: the host waits for each call before the next; pixels and results stay on the
            device.
        pixels_ms: the copy of a batch of pixels from the host's memory to the device, waited for.
        fetch_ms: the copy of complete results to the host.
        answer_ms: copy, call and fetch without waiting in between, from pixels on the host to
            results on the host.

    The last three are None if the program has no such form (training).
    """

    queued_ms: float
    waited_ms: float
    pixels_ms: float | None = None
    fetch_ms: float | None = None
    answer_ms: float | None = None


def measure_latency(
    run: Candidate,
    host: HostCall | None,
    *,
    repeats: int = 10,
    sample_seconds: float = 0.2,
    agree: Callable[[int], int] = int,
) -> Latency:
    """Measures the latencies of a program.

    Args:
        run: makes that many calls back to back, then waits.
        host: the steps of one call; None measures `queued_ms` and `waited_ms` alone.
        repeats: samples of queued calls.
        sample_seconds: length of such a sample. The single calls are measured for as long together,
            and at least `repeats` times.
        agree: see `interleaved`; `host` must be None then.
    """
    (queued,) = interleaved(
        {"": run}, repeats=repeats, sample_seconds=sample_seconds, agree=agree
    ).values()
    if host is None:
        (alone,) = interleaved({"": run}, repeats=repeats, sample_seconds=0.0).values()
        steps = [alone]
    else:
        steps = _steps(host, repeats=repeats, seconds=sample_seconds)
    return Latency(*(1e3 * statistics.median(samples) for samples in (queued, *steps)))


def single_calls(
    run: Candidate, host: HostCall | None, *, sample_seconds: float
) -> dict[str, float | None]:
    """Returns the columns of a table: the fields of `Latency` without `queued_ms`.

    Args:
        run: see `measure_latency`.
        host: see `measure_latency`.
        sample_seconds: see `measure_latency`; three samples.
    """
    found = measure_latency(run, host, repeats=3, sample_seconds=sample_seconds)
    columns = dataclasses.asdict(found)
    del columns["queued_ms"]
    return columns


def _steps(host: HostCall, *, repeats: int, seconds: float) -> list[list[float]]:
    """Returns the seconds of call, copy to the device, fetch, and all three, of single calls."""
    host.answered()
    samples: list[tuple[float, float, float, float]] = []
    end = time.perf_counter() + seconds
    while len(samples) < repeats or time.perf_counter() < end:
        begun = time.perf_counter()
        images = host.put()
        host.wait(images)
        copied = time.perf_counter()
        results = host.start(images)
        host.wait(results)
        computed = time.perf_counter()
        host.fetch(results)
        fetched = time.perf_counter()
        host.answered()
        answered = time.perf_counter()
        samples.append((computed - copied, copied - begun, fetched - computed, answered - fetched))
    return [list(step) for step in zip(*samples, strict=True)]
