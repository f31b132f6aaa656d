"""`vig <train|evaluate|predict|explain|convert|export|report|benchmark|data>`."""

import argparse
import gc
import importlib
import logging
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vig_jax.cli.worker import GC_THRESHOLDS, block_jax_import
from vig_jax.errors import REPORTED_ERRORS, is_full_disk
from vig_jax.text import escape_output, printable_lines

if multiprocessing.parent_process():  # a worker imports the main module again
    block_jax_import()

COMMANDS = {
    "train": "train a model from a config file",
    "evaluate": "metrics of a trained run or a weight file",
    "predict": "classes, class maps or objects of image files",
    "explain": "draw receptive fields, gates and saliency of a model for image files",
    "convert": "turn weight files into others, or into a checkpoint, and back",
    "export": "write a model as StableHLO or ONNX, which run without this package",
    "report": "draw a run's curves and results, and sum it up",
    "benchmark": "images per second and memory of a model on this device",
    "data": "convert, inspect and time data sets; write the embedded photographs",
}


def _import_plugins(names: Sequence[str]) -> None:
    """Imports the modules of --plugin, which may lie in the present folder."""
    if names:
        from vig_jax.config import import_plugins

        sys.path.append(str(Path.cwd()))
        import_plugins(names)


class _PlainFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a subcommand; returns the exit status."""
    escape_output()
    gc.set_threshold(*GC_THRESHOLDS)
    argv = list(sys.argv[1:] if argv is None else argv)
    listing = "\n".join(f"  {name:<11}{help_}" for name, help_ in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="vig",
        description=f"ViG, gated linear attention for images.\n\ncommands:\n{listing}",
        epilog="`vig COMMAND --help` lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="vig COMMAND ...",
    )
    parser.add_argument("command", choices=COMMANDS, help=argparse.SUPPRESS)
    name = parser.parse_args(argv[:1]).command
    logging.basicConfig()
    for handler in logging.root.handlers:  # JAX's import has added one with a prefix
        if type(handler) is logging.StreamHandler:
            handler.setFormatter(_PlainFormatter("%(message)s"))
    logging.getLogger("vig_jax").setLevel(logging.INFO)  # Orbax logs every file it reads
    command = importlib.import_module(f"vig_jax.cli.{name}")  # only what the command needs
    if name == "train":
        return command.main([f"vig {name}", *argv[1:]])
    subparser = argparse.ArgumentParser(
        prog=f"vig {name}",
        description=command.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.configure(subparser)
    try:
        args = subparser.parse_args(argv[1:])
        _import_plugins(getattr(args, "plugin", ()))
        status: int = command.run(args)
        sys.stdout.flush()
        return status
    except REPORTED_ERRORS as error:
        print(printable_lines(f"vig {name}: {error}"), file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader of the output has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except (OSError, ValueError) as error:
        if not is_full_disk(error):
            raise
        print(f"vig {name}: the disk is full: {error}", file=sys.stderr)
        return 1
