"""Images per second, latency and memory of a compiled step."""

import dataclasses
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

# Dense bfloat16 tensor-core peaks in FLOP/s, from NVIDIA's data sheets.
_PEAK_FLOPS = {
    "H200": 989.4e12,
    "H100 80GB HBM3": 989.4e12,
    "H100 PCIe": 756e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
}


@dataclasses.dataclass(frozen=True)
class Throughput:
    """What was measured.

    Attributes:
        img_per_s: batch size over the median time of a step.
        ms: median time of a step in milliseconds: the latency of a batch.
        ms_spread: half the distance between the 16th and 84th percentile, in milliseconds.
        program_bytes: arguments, results and temporaries of the compiled program, shared buffers
            counted once.
        peak_bytes: the allocator's high-water mark since the process began; None where the device
            does not count it (CPU).
    """

    img_per_s: float
    ms: float
    ms_spread: float
    program_bytes: int
    peak_bytes: int | None


def measure(
    compiled: Any,
    inputs: Sequence[tuple[Any, ...]],
    *,
    batch_size: int,
    state: Any = None,
    warmup: int = 3,
    repeats: int = 10,
) -> Throughput:
    """Times a compiled program, synchronised, over several sets of inputs in turn.

    Args:
        compiled: what `jax.jit(f).lower(...).compile()` gives.
        inputs: sets of arguments, on the device.
        batch_size: images per call.
        state: if given, the program takes it first and returns its successor first.
        warmup: calls that are not timed.
        repeats: calls that are.
    """
    seconds = []
    for call in range(warmup + repeats):
        arguments = inputs[call % len(inputs)]
        start = time.perf_counter()
        if state is None:
            jax.block_until_ready(compiled(*arguments))
        else:
            state, *_ = jax.block_until_ready(compiled(state, *arguments))
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
        program_bytes=memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        + memory.temp_size_in_bytes
        - memory.alias_size_in_bytes,
        peak_bytes=stats.get("peak_bytes_in_use"),
    )


def peak_flops(device_kind: str) -> float | None:
    """The device's dense bfloat16 peak in FLOP/s, or None if it is not in our table."""
    return next((peak for name, peak in _PEAK_FLOPS.items() if name in device_kind), None)


def draw(series: Mapping[str, Sequence[Mapping[str, Any]]], title: str, path: Path) -> None:
    """Writes a PNG of throughput, latency and memory against the image size.

    Args:
        series: rows by the model's name; each with `image_size` and the fields of `Throughput`.
        title: of the figure.
        path: of the file.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    figure.suptitle(title, fontsize=10)
    panels = (
        ("images per second", lambda row: row["img_per_s"]),
        ("milliseconds per batch", lambda row: row["ms"]),
        ("memory of the program, GB", lambda row: row["program_bytes"] / 1e9),
    )
    sizes = sorted({row["image_size"] for rows in series.values() for row in rows})
    for place, (label, value) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name, rows in series.items():
            points = sorted((row["image_size"], value(row)) for row in rows)
            axes.plot(*zip(*points, strict=True), marker="o", label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.minorticks_off()
        axes.set_xlabel("image side, pixels")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
