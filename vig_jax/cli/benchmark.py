"""Images per second, latency and memory of models on this device, on random pixels.

  vig benchmark --model vig_s --batch-size 256
  vig benchmark --model vig_t vig_h_t --image-size 224 1024 --batch-size 64 4 --plot sizes.png
  vig benchmark --model vig_t --train --profile
  vig benchmark --model vig_t --check 256
  vig benchmark --model vig_h_t --flops

One row per model and image size. Inference is `vig_jax.predictor`, uint8 pixels to logits; --train
is the update of `train.py` on one device: forward, backward, AdamW, averaged weights; with drop
path, without augmentation.

  img/s, ms    of calls back to back, without waiting in between: the median of samples
  +-           half the distance between the 16th and 84th percentile of these samples, in ms
  latency      milliseconds of a call that is waited for before the next
  MFU          multiply-accumulates as --flops counts them (three times as many for training) over
               the device's bfloat16 peak
  program MB   the compiled program's arguments, results and temporaries, as XLA plans them
  peak MB      the most that this process ever held on the device, rows above included

--check compares the logits of random images with those of a program in float32, of a fresh model:
their relative RMS error, and the share of images with the same first guess. --profile lists the
GPU's kernels. --flops only counts: the parameters, and the multiply-accumulates of one image's
logits.
"""

import argparse
import dataclasses
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vig_jax.errors import ConfigError

if TYPE_CHECKING:
    from kernels_pallas.core.timing import Kernel

_LISTED = 15  # kernels


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from kernels_pallas import IMPLEMENTATIONS
    from vig_jax import list_models

    parser.add_argument("--model", nargs="+", default=["vig_s"], help=", ".join(list_models()))
    parser.add_argument("--image-size", type=int, nargs="+", default=[224], metavar="PIXELS")
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[32],
        metavar="IMAGES",
        help="one for all, or one for each --image-size (default 32)",
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--train", action="store_true", help="a training step, not inference")
    parser.add_argument("--flops", action="store_true", help="count, measure nothing")
    parser.add_argument(
        "--check", type=int, metavar="IMAGES", help="compare with float32 on so many"
    )
    parser.add_argument("--profile", action="store_true", help="list the longest kernels of a step")
    parser.add_argument(
        "--gla", choices=IMPLEMENTATIONS, help="implementation of the GLA op (default: best here)"
    )
    parser.add_argument("--repeats", type=int, default=10, help="samples (default 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write facts and rows here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them against the image size")


def run(args: argparse.Namespace) -> int:
    """Measures, or counts, and prints a table."""
    for option, value in (("--repeats", args.repeats), ("--check", args.check)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}; at least 1 is wanted")
    if args.train and args.check:
        raise ConfigError("--check compares logits, and --train has none: leave one out")
    if args.flops:
        for option in ("train", "check", "profile", "plot"):
            if getattr(args, option):
                raise ConfigError(f"--flops measures nothing: leave --{option} out")
        rows = [_count(args, name, size) for name in args.model for size in args.image_size]
        facts: dict[str, Any] = {"mode": "count"}
    else:
        facts, rows = _measure(args)
    from vig_jax.bench.throughput import write_tables

    write_tables(facts, rows, json_file=args.json, csv_file=args.csv)
    return 0


def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import jax

    from kernels_pallas.core.timing import candidate, kernels
    from vig_jax.bench.programs import (
        agreement,
        flops_per_image,
        image_and_batch_sizes,
        inference_program,
        training_program,
    )
    from vig_jax.bench.throughput import by_model, draw, measure, peak_flops

    shapes = image_and_batch_sizes(args.image_size, args.batch_size)
    configs = [
        (name, size, batch, _config(args, name, size, batch))
        for name in args.model
        for size, batch in shapes
    ]
    device = jax.local_devices()[0]
    peak = peak_flops(device.device_kind)
    facts = {
        "mode": "training step" if args.train else "inference",
        "dtype": args.dtype,
        "device": f"{device.device_kind} ({device.platform})",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    title = f"{facts['mode']}, {args.dtype}, on {facts['device']}, JAX {facts['jax']}"
    print(title)
    print(
        f"{'model':8} {'pixels':>6} {'batch':>5} {'img/s':>10} {'ms':>9} {'+-':>7} {'latency':>9} "
        f"{'MFU':>6} {'program MB':>11} {'peak MB':>8}"
    )
    rows = []
    for name, size, batch, config in configs:
        program = (training_program if args.train else inference_program)(config)
        call = program.calls()
        result = measure(call, batch_size=batch, repeats=args.repeats)
        flops = flops_per_image(config, train=args.train)
        mfu = result.img_per_s * flops / peak if peak and args.dtype == "bfloat16" else None
        row = {"model": name, "image_size": size, "batch_size": batch, "mfu": mfu}
        row |= dataclasses.asdict(result) | {"program_bytes": program.bytes}
        shown = (
            f"{mfu:6.1%}" if mfu is not None else f"{'-':>6}",
            f"{program.bytes / 1e6:11.0f}",
            f"{'-':>8}" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:8.0f}",
        )
        print(
            f"{name:8} {size:6d} {batch:5d} {result.img_per_s:10.1f} {result.ms:9.2f} "
            f"{result.ms_spread:7.2f} {result.latency_ms:9.2f} {' '.join(shown)}",
            flush=True,
        )
        if args.check:
            agreed = agreement(config, program, images=args.check)
            row |= {"rms_error": agreed.rms, "equal_argmax": agreed.argmax}
            print(
                f"  logits of {args.check} images against float32: relative RMS error "
                f"{agreed.rms:.1e}, the same first guess for {agreed.argmax:.1%}"
            )
        if args.profile:
            found = kernels(candidate(call))
            row["kernels_ms"] = sum(kernel.us for kernel in found) / 1e3 if found else None
            _print_kernels(found, device.platform)
        rows.append(row)
    if args.plot:
        draw(by_model(rows), title, args.plot)
        print(f"picture: {args.plot}")
    return facts, rows


def _print_kernels(found: Sequence["Kernel"], platform: str) -> None:
    if not found:
        print(f"  no kernels to list: the profiler knows those of GPUs, and this is a {platform}")
        return
    total = sum(kernel.us for kernel in found)
    print(f"  kernels take {total / 1e3:.3f} ms of a step; the longest {_LISTED}:")
    print(f"  {'us':>10} {'calls':>6}  name")
    for kernel in found[:_LISTED]:
        print(f"  {kernel.us:10.1f} {kernel.calls:6.4g}  {kernel.name}")


def _count(args: argparse.Namespace, name: str, size: int) -> dict[str, Any]:
    """Prints parameters and multiply-accumulates of one model at one image size."""
    import jax
    import jax.numpy as jnp

    from vig_jax.bench.macs import count_macs
    from vig_jax.models.from_config import model_from_config

    model: Any = model_from_config(_config(args, name, size, 1).model)
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    macs = count_macs(model, size, size)
    parts = {"linear": macs.linear, "conv": macs.conv, "GLA": macs.gla, "total": macs.total}
    millions = ", ".join(f"{part} {count / 1e6:,.1f}" for part, count in parts.items())
    print(f"{name} at {size} pixels: {parameters:,} parameters; million MACs: {millions}")
    row = {"model": name, "image_size": size, "parameters": parameters, "macs": macs.total}
    return row | {f"macs_{part}": count for part, count in dataclasses.asdict(macs).items()}


def _config(args: argparse.Namespace, name: str, size: int, batch: int) -> Any:
    from vig_jax.bench.programs import benchmark_config

    return benchmark_config(
        name,
        image_size=size,
        batch_size=batch,
        dtype=args.dtype,
        gla_implementation=args.gla,
    )
