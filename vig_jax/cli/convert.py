"""Turns weight files into others, or into a checkpoint of ours, and back.

  vig convert vig_s.pth vig_s.safetensors --model vig_s --verify
  vig convert vig_s.pth runs/published_vig_s --model vig_s     # then: vig predict runs/...
  vig convert runs/vig_s vig_s.safetensors                     # a run, under upstream's names

IN is a .pth or .safetensors file with the names of hustvl/ViG, or a run. Every name and shape must
fit the model. Nothing in a .pth file is executed. OUT appears whole or not at all.
"""

import argparse
from pathlib import Path

from vig_jax.cli import weights


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", type=Path, metavar="IN")
    parser.add_argument(
        "target", type=Path, metavar="OUT", help="a .safetensors file, or a folder (checkpoint)"
    )
    weights.describe_model(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="the averaged weights, if there are any")
    which.add_argument("--raw", action="store_true", help="the weights, not their average (EMA)")
    parser.add_argument(
        "--to", choices=["checkpoint", "safetensors"], help="default: as the name of OUT says"
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the logits of random images first"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT")


def run(args: argparse.Namespace) -> int:
    """Converts and prints what became of what."""
    from vig_jax.train.conversion import Format, convert

    to: Format = args.to or (
        "safetensors" if args.target.suffix == ".safetensors" else "checkpoint"
    )
    reports = convert(
        args.source,
        args.target,
        to=to,
        model_name=args.model,
        settings=weights.settings(args.set),
        ema=True if args.ema else False if args.raw else None,
        verify=args.verify,
        overwrite=args.force,
    )
    for report in reports:
        model = report.config.model
        print(report.source)
        if report.left:
            print(f"  not taken   {', '.join(report.left)}")
        print(f"  model       {model.name}, {model.num_classes} classes")
        print(f"  tensors     {report.tensors}, with {report.parameters:,} parameters")
        print("  unmatched   none: every name and shape fits")
        changed = "" if report.dtypes == report.read else f" (was {', '.join(report.read)})"
        print(f"  dtype       {', '.join(report.dtypes)}{changed}")
        print(f"  sha256      {report.sha256}")
        if report.difference is not None:
            print(f"  verified    logits of random images differ by {report.difference:g} at most")
    print(f"{to}: {args.target}")
    return 0
