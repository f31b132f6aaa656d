"""Converts weight files and runs into .safetensors files, checkpoints or hub folders.

  vig convert vig_s.pth vig_s.safetensors --model vig_s --verify
  vig convert vig_s.pth runs/published_vig_s --model vig_s     # then: vig predict runs/...
  vig convert runs/vig_s vig_s.safetensors                     # a run, under upstream's names
  vig convert iter_160000.pth runs/upernet --model vig_h_t     # of mmsegmentation; and back
  vig convert runs/pets vig_s_pets --to hub --licence apache-2.0   # a folder for others

IN is a run, a hub folder, or a .pth or .safetensors file with the names of hustvl/ViG, for a
segmenter with those of mmsegmentation, for a detector with those of mmdetection or torchvision.
Every name and shape must fit the model. Nothing in a .pth file is executed. OUT is written whole or
not at all.
"""

import argparse

from vig_jax.cli import options, weights
from vig_jax.errors import ConfigError
from vig_jax.text import printable, printable_lines


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("source", type=options.path, metavar="IN")
    parser.add_argument(
        "target",
        type=options.path,
        metavar="OUT",
        help="a .safetensors file, or a folder (checkpoint)",
    )
    weights.describe_model(parser)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--ema", action="store_true", help="the EMA weights, if there are any")
    which.add_argument("--raw", action="store_true", help="the raw weights, not the EMA weights")
    parser.add_argument(
        "--to",
        choices=["checkpoint", "safetensors", "hub"],
        help="default: by the name of OUT, a .safetensors file or a checkpoint; hub: a folder with "
        "config.json, model.safetensors and a model card",
    )
    parser.add_argument(
        "--licence",
        "--license",
        metavar="ID",
        help="with --to hub: of the weights, as the Hugging Face Hub names it (default: unknown)",
    )
    parser.add_argument(
        "--verify", action="store_true", help="compare the logits of random images first"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT")


def run(args: argparse.Namespace) -> int:
    """Converts and prints a report."""
    from vig_jax.inference.convert import convert, format_of

    to = args.to or format_of(args.target)
    if args.licence and to != "hub":
        raise ConfigError("--licence is for --to hub: other files have no card")
    reports = convert(
        args.source,
        args.target,
        to=to,
        model_name=args.model,
        settings=weights.settings(args.set),
        ema=True if args.ema else False if args.raw else None,
        verify=args.verify,
        overwrite=args.force,
        **({"licence": args.licence} if args.licence else {}),
    )
    for report in reports:
        print(printable_lines(str(report)))
    print(printable(f"{to}: {args.target}"))
    return 0
