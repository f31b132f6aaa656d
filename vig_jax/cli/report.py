"""Draws a run's curves and confusion matrix, and says in a few lines how it went.

  vig report runs/fashion_mnist

Reads metrics.jsonl, also while the run is still going on, and confusion.npz, which every evaluation
of the run writes (`vig evaluate RUN --confusion RUN`, too). Writes curves.png, confusion.png and
top_confusions.csv into the run's folder.
"""

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    parser.add_argument("run", type=Path, help="a run's workdir")


def run(args: argparse.Namespace) -> int:
    """Draws and prints."""
    from vig_jax.tasks.classification import Classification
    from vig_jax.train.logging.report import Record, write_report

    print(Record.of(args.run).summary(Classification.headline))
    for path in write_report(args.run):
        print(f"wrote {path}")
    return 0
