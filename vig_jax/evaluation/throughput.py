"""Images per second and memory of a compiled step."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        img_per_s: batch size over the median time of a step.
        ms: median time of a step in milliseconds.
        ms_spread: half the distance between the 16th and 84th percentile, in milliseconds.
        compile_s: time to compile, in seconds.
        program_bytes: arguments, results and temporaries of the compiled program.
        peak_bytes: the allocator's high-water mark since the process began; None where the device
            does not count it (CPU).
    """

    img_per_s: float
    ms: float
    ms_spread: float
    compile_s: float
    program_bytes: int
    peak_bytes: int | None


def measure(
    step: Callable[..., Any],
    make_arguments: Callable[[int], tuple[Any, ...]],
    *,
    batch_size: int,
    warmup: int = 3,
    repeats: int = 10,
    inputs: int = 4,
) -> Throughput:
    """Compiles and times `step`, synchronised, over several sets of inputs in turn.

    Args:
        step: a pure function of arrays; jitted here.
        make_arguments: arguments number i for `step`, on the device.
        batch_size: images per call.
        warmup: calls that are not timed.
        repeats: calls that are.
        inputs: distinct sets of arguments to go through.
    """
    arguments = [make_arguments(i) for i in range(min(inputs, warmup + repeats))]
    start = time.perf_counter()
    compiled = jax.jit(step).lower(*arguments[0]).compile()
    compile_s = time.perf_counter() - start
    seconds = []
    for call in range(warmup + repeats):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments[call % len(arguments)]))
        seconds.append(time.perf_counter() - start)
    timed = sorted(seconds[warmup:])
    median = statistics.median(timed)
    low, high = (timed[round(share * (len(timed) - 1))] for share in (0.16, 0.84))
    memory = compiled.memory_analysis()
    assert memory is not None, "every backend of JAX analyses its programs"
    stats = jax.local_devices()[0].memory_stats() or {}
    return Throughput(
        img_per_s=batch_size / median,
        ms=1e3 * median,
        ms_spread=1e3 * (high - low) / 2,
        compile_s=compile_s,
        program_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes,
        peak_bytes=stats.get("peak_bytes_in_use"),
    )
