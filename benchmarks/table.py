"""The table of a comparison: what it was measured with, the timing, and the printed rows."""

import platform
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from benchmarks.candidates import Candidate
from kernels_pallas.core.timing import commit, driver, interleaved
from vig_jax.bench.latency import single_calls
from vig_jax.bench.throughput import peak_flops, spread


def facts() -> dict[str, Any]:
    """Returns what a table is measured with: type, device and versions."""
    device = jax.local_devices()[0]
    return {
        "dtype": "bfloat16",
        "device": f"{device.device_kind} ({device.platform})",
        "driver": driver(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "commit": commit(),
    }


def title(facts: Mapping[str, Any]) -> str:
    """Returns type and device."""
    return f"{facts['dtype']}, on {facts['device']}"


def print_head(facts: Mapping[str, Any]) -> None:
    """Prints the facts, and the names of the columns of `print_row`."""
    print(title(facts))
    print(", ".join(f"{name} {value}" for name, value in list(facts.items())[2:]))
    print(
        f"{'model':30} {'as':27} {'pass':9} {'params':>11} {'pixels':>9} {'batch':>5} {'img/s':>9} "
        f"{'ms':>9} {'+-':>7} {'waited':>8} {'answer':>8} {'MB':>7} {'MFU':>6} {'to 1st':>7}"
    )


def print_row(row: Mapping[str, Any]) -> None:
    """Prints a row of `fastest_rows`."""
    mfu = f"{'-':>6}" if row["mfu"] is None else f"{row['mfu']:6.1%}"
    answer = f"{'-':>8}" if row["answer_ms"] is None else f"{row['answer_ms']:8.3f}"
    print(
        f"{row['model']:30} {row['variant']:27} {row['pass']:9} {row['parameters']:11,} "
        f"{row['image_size']:>9} {row['batch_size']:5} {row['img_per_s']:9.1f} {row['ms']:9.3f} "
        f"{row['ms_spread']:7.3f} {row['waited_ms']:8.3f} {answer} "
        f"{row['memory_bytes'] / 1e6:7.0f} {mfu} {row['relative']:7.3f}",
        flush=True,
    )


def fastest_rows(
    group: Sequence[Candidate],
    *,
    pass_: str,
    image_size: int | str,
    batch_size: int,
    repeats: int,
    sample_seconds: float,
) -> list[dict[str, Any]]:
    """Times candidates alternately; returns a row per model, of its fastest variant.

    Args:
        group: variants of one or several models.
        pass_: "inference" or "train".
        image_size: for the rows: the side in pixels, or height and width like "512x2048".
        batch_size: images per call.
        repeats: samples of each candidate.
        sample_seconds: length of a sample.

    Returns:
        Rows for `print_row` in the order of the models, with the latencies of each. `relative` is
        the speed relative to that of the first model.
    """
    peak = peak_flops(jax.local_devices()[0].device_kind)
    seconds = interleaved(
        {f"{one.name} {one.variant}": one.run for one in group},
        repeats=repeats,
        sample_seconds=sample_seconds,
    )
    best: dict[str, dict[str, Any]] = {}
    fastest: dict[str, Candidate] = {}
    for one in group:
        samples = seconds[f"{one.name} {one.variant}"]
        median = statistics.median(samples)
        img_per_s = batch_size / median
        row = {
            "model": one.name,
            "variant": one.variant,
            "pass": pass_,
            "parameters": one.parameters,
            "image_size": image_size,
            "batch_size": batch_size,
            "img_per_s": img_per_s,
            "ms": 1e3 * median,
            "ms_spread": 1e3 * spread(samples),
            "memory_bytes": one.memory_bytes,
            "mfu": img_per_s * one.flops / peak if peak else None,
        }
        if one.name not in best or img_per_s > best[one.name]["img_per_s"]:
            best[one.name], fastest[one.name] = row, one
    rows = list(best.values())
    for name, row in best.items():
        row |= single_calls(fastest[name].run, fastest[name].host, sample_seconds=sample_seconds)
        row["relative"] = row["img_per_s"] / rows[0]["img_per_s"]
    return rows
