"""Draws the curves and the detailed results of a run, and prints a summary.

  vig report runs/fashion_mnist

Reads metrics.jsonl, also while the run continues, and the results that every evaluation of the run
writes, for a classifier confusion.npz. Writes curves.png, confusion.png and top_confusions.csv into
the run's folder.
"""

import argparse

from vig_jax.cli import options


def configure(parser: argparse.ArgumentParser) -> None:
    """Declares the options."""
    options.add_plugins(parser)
    parser.add_argument("run", type=options.path, help="a run's workdir")


def run(args: argparse.Namespace) -> int:
    """Draws and prints."""
    from vig_jax.train.logging.history import RunHistory, write_report

    print(RunHistory.read(args.run).summary())
    for path in write_report(args.run):
        print(f"wrote {path}")
    return 0
