"""Exports a trained model to a file that runs without this package.

  vig export runs/vig_s vig_s.stablehlo --verify                # for jax.export.deserialize
  vig export vig_s.pth vig_s.onnx --model vig_s --verify        # for onnxruntime and TensorRT
  vig export runs/upernet segment.onnx --outputs labels --batch 1 --image-size 512x1024

IN is a run, a hub folder or a weight file, as for `vig convert`. The program takes uint8 RGB images
of one size and normalises them. OUT.json has the names of the classes and the shapes. StableHLO
needs `pip install 'vig-jax[export]'`, ONNX `pip install 'vig-jax[onnx]'`.
"""

import argparse

from vig_jax.cli import options, weights
from vig_jax.text import printable_lines


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", type=options.path, metavar="IN")
    parser.add_argument("target", type=options.output_file, metavar="OUT")
    weights.describe_model(parser, "; with a run, one of its evaluation")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="the EMA weights, if there are any")
    which.add_argument("--raw", action="store_true", help="the raw weights, not the EMA weights")
    parser.add_argument(
        "--to", choices=["stablehlo", "onnx"], help="default: by the name of OUT, onnx for .onnx"
    )
    parser.add_argument(
        "--outputs",
        choices=["logits", "features", "labels", "objects"],
        help="default: logits, or objects of a detector; features: maps; labels: the class of "
        "every pixel, of a segmenter",
    )
    parser.add_argument(
        "--batch",
        type=_batch,
        default=None,
        metavar="dynamic|N",
        help="images per call (default: dynamic, any number)",
    )
    parser.add_argument(
        "--image-size",
        type=options.image_size,
        metavar="PIXELS",
        help="side of the images, or HEIGHTxWIDTH as 320x224; default: that of the evaluation",
    )
    parser.add_argument(
        "--platforms",
        type=lambda text: tuple(filter(None, text.split(","))),
        metavar="NAMES",
        help="of StableHLO, separated by commas: cpu, cuda, rocm, tpu (default: cpu,cuda,tpu)",
    )
    parser.add_argument(
        "--opset", type=options.positive, metavar="N", help="of ONNX, at least 18 (default: 18)"
    )
    parser.add_argument(
        "--dtype",
        choices=["float32", "bfloat16"],
        default="float32",
        help="of the computation (default: float32)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare with the model on random images first"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT")


def run(args: argparse.Namespace) -> int:
    """Exports and prints a report."""
    from vig_jax.inference.export import export
    from vig_jax.inference.hub import from_pretrained

    loaded = from_pretrained(
        args.source,
        args.model,
        ema=True if args.ema else False if args.raw else None,
        settings=weights.settings(args.set),
    )
    report = export(
        loaded,
        args.target,
        to=args.to,
        outputs=args.outputs,
        batch_size=args.batch,
        image_size=args.image_size,
        platforms=args.platforms,
        opset=args.opset,
        dtype=args.dtype,
        verify=args.verify,
        overwrite=args.force,
    )
    print(printable_lines(str(report)))
    return 0


def _batch(text: str) -> int | None:
    """Returns the number of images, or None for "dynamic"."""
    return None if text == "dynamic" else options.positive(text)
