"""Writes the embedded Fashion-MNIST photographs as an image folder.

vig data photographs --split eval --per-class 4
"""

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("directory", type=Path, help="gets CLASS/NUMBER.png")
    parser.add_argument("--split", choices=["train", "eval"], default="eval")
    parser.add_argument("--per-class", type=int, metavar="N", help="only N of each class")


def run(args: argparse.Namespace) -> int:
    """Writes the files."""
    from vig_jax.data.fashion_mnist import write_images

    count = write_images(args.directory, args.split, args.per_class)
    print(f"{count} images: {args.directory}")
    return 0
