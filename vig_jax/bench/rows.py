"""One row of `vig benchmark` per model and image size: measured or counted, as text and as data."""

import dataclasses
import platform
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.core.timing import Kernel, candidate, kernels
from vig_jax.bench.batches import size_of
from vig_jax.bench.compile_time import compile_seconds
from vig_jax.bench.latency import single_calls
from vig_jax.bench.macs import count_macs
from vig_jax.bench.programs import (
    agreement,
    flops_per_image,
    inference_program,
    model_of,
    size_text,
    training_program,
)
from vig_jax.bench.throughput import measure, peak_flops
from vig_jax.config import RunConfig

HEADER = (
    f"{'model':8} {'pixels':>6} {'batch':>5} {'img/s':>10} {'ms':>9} {'+-':>7} {'latency':>9} "
    f"{'answer':>9} {'MFU':>6} {'program MB':>11} {'peak MB':>8} {'compile s':>9} {'first s':>7}"
)
_LISTED = 15  # kernels
_SINGLE_SECONDS = 0.2  # of calls that are waited for

Row = dict[str, Any]


def facts(dtype: str, *, task: str, train: bool) -> dict[str, Any]:
    """Returns the conditions of a measurement: task, mode, dtype, device and versions."""
    device = jax.local_devices()[0]
    return {
        "task": task,
        "mode": "training step" if train else "inference",
        "dtype": dtype,
        "device": f"{device.device_kind} ({device.platform})",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }


def measured(
    config: RunConfig, *, train: bool, repeats: int, check: int | None, profile: bool
) -> tuple[Row, str]:
    """Measures one model at one image size.

    Args:
        config: from `benchmark_config`.
        train: measure a training step instead of inference.
        repeats: number of samples.
        check: number of images whose logits are compared with float32; None compares none.
        profile: list the kernels of a step.

    Returns:
        The row, and its text.
    """
    name, side, batch = config.model.name, size_text(config), config.train.batch_size
    device = jax.local_devices()[0]
    begin = time.perf_counter()
    with compile_seconds() as compilations:
        program = (training_program if train else inference_program)(config)
    call = program.calls()
    jax.block_until_ready(call())
    first_s = time.perf_counter() - begin
    result = measure(call, batch_size=batch, repeats=repeats)
    alone = single_calls(candidate(call), program.host_call(), sample_seconds=_SINGLE_SECONDS)
    del alone["waited_ms"]  # `latency_ms`
    peak = peak_flops(device.device_kind) if config.model.dtype == "bfloat16" else None
    mfu = result.img_per_s * flops_per_image(config, train=train) / peak if peak else None
    row = {"model": name, "image_size": side, "batch_size": batch, "mfu": mfu}
    row |= dataclasses.asdict(result) | {"program_bytes": program.bytes}
    row |= alone | {"compile_s": sum(compilations), "first_result_s": first_s}
    answer = alone["answer_ms"]
    high_water = "-" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:.0f}"
    lines = [
        f"{name:8} {side:>6} {batch:5d} {result.img_per_s:10.1f} {result.ms:9.2f} "
        f"{result.ms_spread:7.2f} {result.latency_ms:9.2f} "
        f"{'-' if answer is None else f'{answer:.2f}':>9} "
        f"{'-' if mfu is None else f'{mfu:.1%}':>6} {program.bytes / 1e6:11.0f} {high_water:>8} "
        f"{sum(compilations):9.1f} {first_s:7.1f}"
    ]
    if check:
        agreed = agreement(config, program, images=check)
        row |= {"rms_error": agreed.rms, "equal_argmax": agreed.argmax}
        lines.append(
            f"  logits of {check} images against float32: relative RMS error {agreed.rms:.1e}, the "
            f"same first guess for {agreed.argmax:.1%}"
        )
    if profile:
        found = kernels(candidate(call))
        row["kernels_ms"] = sum(kernel.us for kernel in found) / 1e3 if found else None
        lines += _kernel_lines(found, device.platform)
    return row, "\n".join(lines)


def counted(config: RunConfig) -> tuple[Row, str]:
    """Counts the parameters and the multiply-accumulates of one model at one image size.

    Returns:
        The row, and its text.
    """
    name, side, model = config.model.name, size_text(config), model_of(config)
    images = jax.ShapeDtypeStruct((1, *size_of(config), 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    macs = count_macs(model, *size_of(config))
    parts = {"linear": macs.linear, "conv": macs.conv, "GLA": macs.gla}
    parts |= {"head": macs.head} if macs.head else {}
    parts |= {"of these saved": macs.saved} if macs.saved else {}
    parts |= {"total": macs.total}
    millions = ", ".join(f"{part} {count / 1e6:,.1f}" for part, count in parts.items())
    row = {"model": name, "image_size": side, "parameters": parameters, "macs": macs.total}
    row |= {f"macs_{part}": count for part, count in dataclasses.asdict(macs).items()}
    return row, f"{name} at {side} pixels: {parameters:,} parameters; million MACs: {millions}"


def _kernel_lines(found: Sequence[Kernel], platform: str) -> list[str]:
    """Returns a table of the longest kernels."""
    if not found:
        return [f"  no kernels: the profiler lists those of GPUs, and this is a {platform}"]
    total = sum(kernel.us for kernel in found)
    return [
        f"  kernels take {total / 1e3:.3f} ms of a step; the longest {_LISTED}:",
        f"  {'us':>10} {'calls':>6}  name",
        *(f"  {k.us:10.1f} {k.calls:6.4g}  {k.name}" for k in found[:_LISTED]),
    ]
