"""Measures images per second, latency and memory of a compiled step."""

import csv
import dataclasses
import itertools
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from kernels_pallas.core.timing import candidate, interleaved
from vig_jax.bench.latency import HostCall
from vig_jax.figures import new_figure, save_figure
from vig_jax.files import to_json

# Dense bfloat16 tensor-core peaks in FLOP/s, from NVIDIA's data sheets, by the driver's names.
_PEAK_FLOPS = {
    "NVIDIA H200": 989.4e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100-PCIE-40GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA L40S": 362e12,
    "NVIDIA L4": 121e12,
}
_SAMPLE_SECONDS = 0.2


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step and what to call it with.

    Attributes:
        compiled: the result of `jax.jit(f).lower(...).compile()`.
        inputs: sets of arguments on the device, used in rotation.
        state: if given, the first argument, which the program donates; its first result is the next
            state.
        constants: shapes of the weights that are constants of the program.
    """

    compiled: Any
    inputs: Sequence[tuple[Any, ...]]
    state: Any = None
    constants: Any = ()

    def calls(self) -> Callable[[], Any]:
        """Returns a function that starts the next call and returns its results."""
        state, sets = self.state, itertools.cycle(self.inputs)
        if state is None:
            return lambda: self.compiled(*next(sets))

        def call() -> Any:
            nonlocal state
            state, *rest = self.compiled(state, *next(sets))
            return state, rest

        return call

    def host_call(self) -> HostCall | None:
        """Returns the steps of a call `compiled(variables, pixels)` with pixels on the host.

        Programs with a state have none.
        """
        if self.state is not None:
            return None
        variables, pixels = self.inputs[0]
        on_host = jax.device_get(pixels)
        return HostCall(
            put=lambda: jax.device_put(on_host, pixels.sharding),
            start=lambda images: self.compiled(variables, images),
            wait=jax.block_until_ready,
            fetch=jax.device_get,
            # JAX copies arguments in less time than `device_put`.
            answer=lambda: jax.device_get(self.compiled(variables, on_host)),
        )

    @property
    def bytes(self) -> int:
        """Bytes of arguments, weights, results and temporaries; shared buffers count once."""
        memory = self.compiled.memory_analysis()
        assert memory is not None, "every backend of JAX analyses its programs"
        return (
            sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(self.constants))
            + memory.argument_size_in_bytes
            + memory.output_size_in_bytes
            + memory.temp_size_in_bytes
            - memory.alias_size_in_bytes
        )


@dataclasses.dataclass(frozen=True)
class Throughput:
    """Measurements of a program.

    Attributes:
        img_per_s: batch size over `ms`.
        ms: milliseconds per step, steps back to back; the median of the samples.
        ms_spread: half the distance between the 16th and 84th percentile of these samples.
        latency_ms: milliseconds of a step that the host waits for; the median of the samples.
        peak_bytes: the allocator's high-water mark since the process began; None if the device does
            not report it (CPU).
    """

    img_per_s: float
    ms: float
    ms_spread: float
    latency_ms: float
    peak_bytes: int | None


def measure(call: Callable[[], Any], *, batch_size: int, repeats: int = 10) -> Throughput:
    """Times a program.

    Args:
        call: from `Program.calls`.
        batch_size: images per call.
        repeats: number of samples.
    """
    run = {"": candidate(call)}
    (back_to_back,) = interleaved(run, repeats=repeats, sample_seconds=_SAMPLE_SECONDS).values()
    (alone,) = interleaved(run, repeats=repeats, sample_seconds=0.0).values()
    stats = jax.local_devices()[0].memory_stats() or {}
    return Throughput(
        img_per_s=batch_size / statistics.median(back_to_back),
        ms=1e3 * statistics.median(back_to_back),
        ms_spread=1e3 * spread(back_to_back),
        latency_ms=1e3 * statistics.median(alone),
        peak_bytes=stats.get("peak_bytes_in_use"),
    )


def spread(samples: Sequence[float]) -> float:
    """Returns half the distance between the 16th and 84th percentile."""
    ordered = sorted(samples)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.16, 0.84))
    return (high - low) / 2


def peak_flops(device_kind: str) -> float | None:
    """Returns the device's dense bfloat16 peak in FLOP/s, or None if it is not in the table."""
    return _PEAK_FLOPS.get(device_kind)


def write_tables(
    facts: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    json_file: Path | None,
    csv_file: Path | None,
) -> None:
    """Writes the rows as CSV, and the facts and the rows as JSON, to the files that are given."""
    for path in filter(None, (json_file, csv_file)):
        path.parent.mkdir(parents=True, exist_ok=True)
    if json_file:
        json_file.write_text(to_json({**facts, "rows": rows}))
    if csv_file:
        with csv_file.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0] if rows else ())
            writer.writeheader()
            writer.writerows(rows)


def by_model(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Groups the rows by model, as `draw` takes them."""
    return {row["model"]: [r for r in rows if r["model"] == row["model"]] for row in rows}


def draw(
    series: Mapping[str, Sequence[Mapping[str, Any]]],
    title: str,
    path: Path,
    *,
    memory: str = "program_bytes",
) -> None:
    """Writes a PNG of throughput, latency and memory against the image size.

    The batch size is in the title if all rows share it. Otherwise it is written at each point.

    Args:
        series: rows by the model's name; each with `image_size`, `batch_size`, `img_per_s`, `ms`
            and `memory`.
        title: of the figure.
        path: of the file.
        memory: the key of a row that has the bytes of memory.
    """
    from matplotlib.ticker import LogLocator

    figure = new_figure(11.0, 3.6)
    batches = {row.get("batch_size") for rows in series.values() for row in rows} - {None}
    if len(batches) == 1:
        title += f", batches of {next(iter(batches))}"
    elif batches:
        title += "; the number at a point is its batch size"
    figure.suptitle(title, fontsize=10)
    panels = (
        ("images per second", lambda row: row["img_per_s"]),
        ("milliseconds per batch", lambda row: row["ms"]),
        ("memory, GB", lambda row: row[memory] / 1e9),
    )
    sizes = sorted({row["image_size"] for rows in series.values() for row in rows})
    for place, (label, value) in enumerate(panels, start=1):
        axes = figure.add_subplot(1, len(panels), place)
        for name, rows in series.items():
            points = sorted((row["image_size"], value(row)) for row in rows)
            (line,) = axes.plot(*zip(*points, strict=True), marker="o", label=name)
            for row in rows if len(batches) > 1 else ():
                axes.annotate(
                    str(row["batch_size"]),
                    (row["image_size"], value(row)),
                    xytext=(0, 4),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6,
                    color=line.get_color(),
                )
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xticks(sizes, [str(size) for size in sizes])
        # Labels even where the values span less than a decade.
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.minorticks_off()
        axes.set_xlabel("image side, pixels")
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    save_figure(figure, path)
