"""Classifies image files with a trained run.

  vig predict runs/fashion_mnist photo.png
  vig predict runs/fashion_mnist folder/ --top 3 --json answers.json --picture answers.png

With --picture, a folder named after a class counts as its images' true label.
"""

import argparse
import json
import sys
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", type=Path, help="a run's workdir, or one of its checkpoints")
    parser.add_argument("images", type=Path, nargs="+", help="image files, or folders of them")
    parser.add_argument("--top", type=int, default=5, help="answers per image (default 5)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--raw", action="store_true", help="the weights, not their average (EMA)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers here")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw images with answers")


def run(args: argparse.Namespace) -> int:
    """Predicts, prints, draws; status 1 if an image could not be read."""
    from vig_jax.predict import Classifier, draw, find_images

    files = find_images(args.images)
    classifier = Classifier.load(args.run, ema=False if args.raw else None)
    answers, failed = [], 0
    for answer in classifier.predict(files, top=args.top, batch_size=args.batch_size):
        answers.append(answer)
        if answer.error:
            failed += 1
            print(f"{answer.path}: skipped, {answer.error}", file=sys.stderr)
            continue
        guesses = "  ".join(f"{name} {p:.1%}" for name, p in answer.top)
        print(f"{answer.path}: {guesses}")
    if args.json:
        args.json.write_text(json.dumps([a.to_json() for a in answers], indent=1) + "\n")
        print(f"answers: {args.json}")
    if args.picture:
        shown = draw(answers, args.picture, classifier.class_names)
        print(f"picture of {shown} images: {args.picture}")
    return 1 if failed else 0
