"""Tunes operators on the GPU at hand: `python -m kernels_pallas.autotune --help`."""

import argparse
import sys
from collections.abc import Sequence

import jax

from ..core.arg_specs import MODEL
from ..core.launch import target_device
from ..operators import OPERATORS
from .search import autotune


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m kernels_pallas.autotune",
        description="Times the configs of each operator's kernels at the shapes of the ViG models, "
        "forward and with gradients, and stores the fastest for this model of GPU.",
    )
    parser.add_argument(
        "--op", action="append", choices=OPERATORS, help="an operator (default: all operators)"
    )
    parser.add_argument(
        "--case", action="append", metavar="NAME", help="a case (default: all of the models')"
    )
    parser.add_argument("--dtype", default="bfloat16", help="type of arrays (default: bfloat16)")
    parser.add_argument("--samples", type=int, default=5, help="samples of a time (default: 5)")
    parser.add_argument("--dry-run", action="store_true", help="print the winners, store nothing")
    options = parser.parse_args(argv)
    if target_device() is None:
        print("error: tuning needs a CUDA GPU, and JAX sees none", file=sys.stderr)
        return 1
    for name in options.op or OPERATORS:
        function, cases = OPERATORS[name]
        for case in cases:
            if case.name in options.case if options.case else MODEL in case.tags:
                case = case.astype(options.dtype)
                config = autotune(
                    case.bind(function),
                    *case.arrays(),
                    gradients=True,
                    store=not options.dry_run,
                    samples=options.samples,
                )
                print(f"{name} {case.name}: {config}", flush=True)
                jax.clear_caches()
    return 0


if __name__ == "__main__":
    sys.exit(main())
