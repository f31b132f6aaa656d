"""Classifies image files with a trained run or with a weight file.

  vig predict runs/fashion_mnist photo.png
  vig predict runs/fashion_mnist folder/ --top 3 --json answers.json --picture answers.png
  vig predict --weights vig_s.pth --model vig_s photo.jpg

With --picture, a folder named after a class counts as its images' true label.
"""

import argparse
import json
import sys
from pathlib import Path

from vig_jax.cli import weights
from vig_jax.errors import ConfigError


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="a run's workdir or one of its checkpoints (not with --weights), then image files or "
        "folders of them",
    )
    weights.configure(parser)
    parser.add_argument("--top", type=int, default=5, help="answers per image (default 5)")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the answers here")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="draw images with answers")


def run(args: argparse.Namespace) -> int:
    """Predicts, prints, draws; status 1 if an image could not be read."""
    from vig_jax.inference.files import Classifier, draw, find_images

    run, images = (None, args.paths) if args.weights else (args.paths[0], args.paths[1:])
    if not images:
        raise ConfigError(f"which images? Only {run} is given; a run and then images are wanted")
    files = find_images(images)
    restored = weights.restore(args, run)
    print(f"{restored.config.model.name}: {restored.description}", file=sys.stderr)
    classifier = Classifier.of(restored)
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
