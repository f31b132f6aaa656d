"""Images per second, latency and memory of models on this device, on random pixels.

  vig benchmark --model vig_s --batch-size 256
  vig benchmark --model vig_t vig_h_t --image-size 224 512 1024 --batch-size 8 --plot sizes.png
  vig benchmark --model vig_t --train
  vig benchmark --model vig_h_t --flops

One row per model and image size: the median of synchronised calls after warm-up. Inference is
`vig_jax.predictor`, uint8 pixels to logits; --train is the update of `train.py` on one device:
forward, backward, AdamW, averaged weights; with drop path, without augmentation. MFU is the
multiply-accumulates of --flops (three times as many for training) over the device's bfloat16 peak.
--flops only counts: the parameters, and the multiply-accumulates of one image's logits.
"""

import argparse
import dataclasses
import platform
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    from vig_jax import list_models

    parser.add_argument("--model", nargs="+", default=["vig_s"], help=", ".join(list_models()))
    parser.add_argument("--image-size", type=int, nargs="+", default=[224], metavar="PIXELS")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--train", action="store_true", help="a training step, not inference")
    parser.add_argument("--flops", action="store_true", help="count, measure nothing")
    parser.add_argument("--gla", help="implementation of the GLA op (default: best here)")
    parser.add_argument("--repeats", type=int, default=10, help="timed calls (default 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write facts and rows here")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw them against the image size")


def run(args: argparse.Namespace) -> int:
    """Measures, or counts, and prints a table."""
    for option, value in (("--batch-size", args.batch_size), ("--repeats", args.repeats)):
        if value < 1:
            raise ValueError(f"{option} is {value}; at least 1 is wanted")
    if args.flops:
        rows = [_count(args, name, size) for name in args.model for size in args.image_size]
        facts: dict[str, Any] = {"mode": "count"}
    else:
        facts, rows = _measure(args)
    from vig_jax.evaluation.throughput import write_tables

    write_tables(facts, rows, json_file=args.json, csv_file=args.csv)
    return 0


def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    import jax

    from vig_jax.cli.programs import flops_per_image, inference_program, training_program
    from vig_jax.evaluation.throughput import draw, measure, peak_flops

    configs = {
        (name, size): _config(args, name, size) for name in args.model for size in args.image_size
    }
    device = jax.local_devices()[0]
    peak = peak_flops(device.device_kind)
    facts = {
        "mode": "training step" if args.train else "inference",
        "dtype": args.dtype,
        "batch_size": args.batch_size,
        "device": f"{device.device_kind} ({device.platform})",
        "jax": jax.__version__,
        "python": platform.python_version(),
    }
    title = (
        f"{facts['mode']}, {args.dtype}, batch {args.batch_size}, on {facts['device']}, "
        f"JAX {facts['jax']}"
    )
    print(title)
    print(
        f"{'model':8} {'pixels':>6} {'img/s':>10} {'ms':>9} {'+-':>7} {'MFU':>6} "
        f"{'program MB':>11} {'peak MB':>8}"
    )
    rows = []
    for (name, size), config in configs.items():
        program = (training_program if args.train else inference_program)(config)
        result = measure(program, batch_size=args.batch_size, repeats=args.repeats)
        flops = flops_per_image(config, train=args.train)
        mfu = result.img_per_s * flops / peak if peak and args.dtype == "bfloat16" else None
        shown = (
            f"{mfu:6.1%}" if mfu is not None else f"{'-':>6}",
            f"{result.program_bytes / 1e6:11.0f}",
            f"{'-':>8}" if result.peak_bytes is None else f"{result.peak_bytes / 1e6:8.0f}",
        )
        print(
            f"{name:8} {size:6d} {result.img_per_s:10.1f} {result.ms:9.2f} "
            f"{result.ms_spread:7.2f} {' '.join(shown)}",
            flush=True,
        )
        row = {"model": name, "image_size": size, "mfu": mfu}
        rows.append(row | dataclasses.asdict(result))
    if args.plot:
        series = {name: [row for row in rows if row["model"] == name] for name in args.model}
        draw(series, title, args.plot)
        print(f"picture: {args.plot}")
    return facts, rows


def _count(args: argparse.Namespace, name: str, size: int) -> dict[str, Any]:
    """Prints parameters and multiply-accumulates of one model at one image size."""
    import jax
    import jax.numpy as jnp

    from vig_jax.evaluation.macs import count_macs
    from vig_jax.tasks.classification import make_task

    model: Any = make_task(_config(args, name, size)).model
    images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(variables))
    macs = count_macs(model, size, size)
    parts = {"linear": macs.linear, "conv": macs.conv, "GLA": macs.gla, "total": macs.total}
    millions = ", ".join(f"{part} {count / 1e6:,.1f}" for part, count in parts.items())
    print(f"{name} at {size} pixels: {parameters:,} parameters; million MACs: {millions}")
    row = {"model": name, "image_size": size, "parameters": parameters, "macs": macs.total}
    return row | {f"macs_{part}": count for part, count in dataclasses.asdict(macs).items()}


def _config(args: argparse.Namespace, name: str, size: int) -> Any:
    from vig_jax.cli.programs import benchmark_config

    return benchmark_config(
        name,
        image_size=size,
        batch_size=args.batch_size,
        dtype=args.dtype,
        gla_implementation=args.gla,
    )
