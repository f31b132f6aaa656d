"""Images per second, latency, memory and compile time of models on this device, on random pixels.

  vig benchmark --model vig_s --batch-size 256
  vig benchmark --model vig_t vig_h_t --image-size 224 1024 --batch-size 64 4 --plot sizes.png
  vig benchmark --model vig_t --train --profile
  vig benchmark --model vig_t --check 256
  vig benchmark --model vig_h_t --flops
  vig benchmark --task segmentation --model vig_h_t --image-size 512x2048 --batch-size 1
  vig benchmark --task detection --model vig_h_t --batch-size 2 --train

One row per model and image size. Inference is `vig_jax.predictor`, uint8 pixels to logits; --train
is the update of `train.py` on one device (forward, backward, AdamW, EMA weights), with drop path
and without augmentation. --task segmentation is UperNet with 150 classes: inference ends with a
label map of the images' size, and the update has an auxiliary head and no EMA weights. --task
detection is Mask R-CNN with 80 classes: inference ends with 100 boxes and masks of each image, and
every pair of a region and a class is a candidate; the update has 8 objects in an image and no EMA
weights.

  img/s, ms    calls back to back, without waiting in between: the median of the samples
  +-           half the distance between the 16th and 84th percentile of these samples, in ms
  latency      milliseconds of a call that the host waits for before the next
  answer       milliseconds from pixels on the host to results on the host: copy, call and fetch
  MFU          multiply-accumulates as --flops counts them, without the saved ones (times three
               for training), over the device's bfloat16 peak
  program MB   the compiled program's arguments, results and temporaries, as XLA plans them
  peak MB      the largest amount that this process ever held on the device, in any row so far
  compile s    seconds in which XLA compiled the program and those of the weights and inputs
  first s      seconds from the model's name to its first results: tracing and compilation included

--check compares the logits of random images with those of the same model in float32: the relative
RMS error, and the share of images with the same first guess. Those of a detector are its anchors'.
--profile lists the GPU's kernels. --flops measures nothing: it counts the parameters and the
multiply-accumulates of one image. Those of a segmenter leave out the auxiliary head, as papers do.
"saved" are those of the decode head's 3x3 convolutions that are not computed, since small maps are
multiplied before they are enlarged. A detector has 1000 regions and 100 masks.
"""

import argparse
from typing import TYPE_CHECKING, Any

from vig_jax.cli import options
from vig_jax.errors import ConfigError

if TYPE_CHECKING:
    from vig_jax.config import RunConfig

_SIZES: dict[str, int | tuple[int, int]] = {
    "classification": 224,
    "segmentation": 512,
    "detection": (800, 1280),
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    options.add_plugins(parser)
    parser.add_argument("--model", nargs="+", default=["vig_s"], help=", ".join(options.MODELS))
    parser.add_argument("--task", choices=list(_SIZES), default="classification")
    parser.add_argument(
        "--image-size",
        type=options.image_size,
        nargs="+",
        metavar="PIXELS",
        help="side, or HEIGHTxWIDTH (default 224; segmentation: 512; detection: 800x1280)",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        nargs="+",
        default=[32],
        metavar="IMAGES",
        help="one for all, or one for each --image-size (default 32)",
    )
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--train", action="store_true", help="a training step instead of inference")
    parser.add_argument("--flops", action="store_true", help="count instead of measuring")
    parser.add_argument(
        "--check", type=int, metavar="IMAGES", help="compare with float32 on this many"
    )
    parser.add_argument("--profile", action="store_true", help="list the longest kernels of a step")
    parser.add_argument(
        "--gla",
        choices=options.IMPLEMENTATIONS,
        help="implementation of the GLA op (default: best here)",
    )
    parser.add_argument("--repeats", type=int, default=10, help="samples (default 10)")
    parser.add_argument(
        "--json", type=options.output_file, metavar="FILE", help="also write facts and rows here"
    )
    parser.add_argument(
        "--csv", type=options.output_file, metavar="FILE", help="also write the rows here"
    )
    parser.add_argument(
        "--plot", type=options.output_file, metavar="PNG", help="draw them against the image size"
    )


def run(args: argparse.Namespace) -> int:
    """Measures, or counts, and prints a table."""
    for option, value in (("--repeats", args.repeats), ("--check", args.check)):
        if value is not None and value < 1:
            raise ConfigError(f"{option} is {value}; it must be at least 1")
    if args.train and args.check:
        raise ConfigError("--check compares logits, and --train has none: leave one out")
    args.image_size = args.image_size or [_SIZES[args.task]]
    if args.plot and any(isinstance(size, tuple) for size in args.image_size):
        raise ConfigError("--plot draws over the side of square images: leave HEIGHTxWIDTH out")
    facts, rows = _count(args) if args.flops else _measure(args)
    from vig_jax.bench.throughput import write_tables

    write_tables(facts, rows, json_file=args.json, csv_file=args.csv)
    return 0


def _measure(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from vig_jax.bench.programs import image_and_batch_sizes
    from vig_jax.bench.rows import HEADER, facts, measured
    from vig_jax.bench.throughput import by_model, draw

    shapes = image_and_batch_sizes(args.image_size, args.batch_size)
    configs = [_config(args, name, *shape) for name in args.model for shape in shapes]
    conditions, rows = facts(args.dtype, task=args.task, train=args.train), []
    title = "{task}, {mode}, {dtype}, on {device}, JAX {jax}".format(**conditions)
    print(title, HEADER, sep="\n")
    for config in configs:
        row, text = measured(
            config,
            train=args.train,
            repeats=args.repeats,
            check=args.check,
            profile=args.profile,
        )
        print(text, flush=True)
        rows.append(row)
    if args.plot:
        draw(by_model(rows), title, args.plot)
        print(f"figure: {args.plot}")
    return conditions, rows


def _count(args: argparse.Namespace) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    from vig_jax.bench.rows import counted

    for option in ("train", "check", "profile", "plot"):
        if getattr(args, option):
            raise ConfigError(f"--flops measures nothing: leave --{option} out")
    rows = []
    for name in args.model:
        for size in args.image_size:
            row, text = counted(_config(args, name, size, 1))
            print(text)
            rows.append(row)
    return {"task": args.task, "mode": "count"}, rows


def _config(
    args: argparse.Namespace, name: str, size: int | tuple[int, int], batch: int
) -> "RunConfig":
    from vig_jax.bench.programs import benchmark_config

    return benchmark_config(
        name,
        image_size=size,
        batch_size=batch,
        dtype=args.dtype,
        gla_implementation=args.gla,
        task=args.task,
    )
