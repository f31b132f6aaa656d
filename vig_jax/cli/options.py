"""Types of command-line options: each checks its value before any work is done.

The names of models and implementations are repeated here, so that --help does not import JAX.
"""

import argparse
from pathlib import Path

from vig_jax.train.processes import OPTIONS, Member, find_member

MODELS = ("vig_t", "vig_s", "vig_b", "vig_h_t", "vig_h_s", "vig_h_b")
"""`vig_jax.list_models()`."""
IMPLEMENTATIONS = ("pallas_triton", "xla_chunked", "xla_unrolled", "reference")
"""`kernels_pallas.vig_mixer.IMPLEMENTATIONS`."""
MESH_AXES = ("data", "fsdp", "sequence")
"""The fields of `vig_jax.config.MeshConfig`."""


def path(text: str) -> Path:
    """Returns a path with "~" replaced by the user's home."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from error


def output_file(text: str) -> Path:
    """Returns the path of a file to write; its folder is created."""
    file = path(text)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{file.parent} cannot be created: {error}") from error
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{file} is a folder: name a file")
    return file


def positive(text: str) -> int:
    """Returns an integer that is at least 1."""
    return _at_least(1, text)


def count(text: str) -> int:
    """Returns an integer that is at least 0."""
    return _at_least(0, text)


def mesh(text: str) -> dict[str, int]:
    """Returns the devices per axis of "data=2,fsdp=1,sequence=4"; axes may be left out."""
    axes = {}
    for part in text.split(","):
        axis, equals, devices = part.partition("=")
        if axis not in MESH_AXES or not equals:
            raise argparse.ArgumentTypeError(
                f"{part!r} is not AXIS=DEVICES with one of the axes {', '.join(MESH_AXES)}"
            )
        axes[axis] = positive(devices)
    return axes


def probability(text: str) -> float:
    """Returns a number from 0 to 1."""
    try:
        value = float(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number") from error
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to 1")
    return value


def image_size(text: str) -> int | tuple[int, int]:
    """Returns the side of square images, or height and width of "HEIGHTxWIDTH"."""
    height, times, width = text.partition("x")
    return (positive(height), positive(width)) if times else positive(text)


def add_plugins(parser: argparse.ArgumentParser) -> None:
    """Declares the option that imports plugins."""
    parser.add_argument(
        "--plugin",
        action="append",
        default=[],
        metavar="MODULE",
        help="import this module, which registers data sets, tasks or models; can be repeated",
    )


def add_processes(parser: argparse.ArgumentParser) -> None:
    """Declares the options of a command that can run on several processes."""
    parser.add_argument(
        "--distributed", action="store_true", default=None, help=OPTIONS["distributed"]
    )
    parser.add_argument("--coordinator", metavar="HOST:PORT", help=OPTIONS["coordinator"])
    parser.add_argument(
        "--num-processes", type=positive, metavar="N", help=OPTIONS["num_processes"]
    )
    parser.add_argument("--process-id", type=count, metavar="I", help=OPTIONS["process_id"])
    parser.add_argument(
        "--local-processes", type=positive, metavar="N", help=OPTIONS["local_processes"]
    )


def member(args: argparse.Namespace) -> Member | None:
    """Returns which process of several this is, by the options; None if it is the only one."""
    given = (args.coordinator, args.num_processes, args.process_id, args.local_processes)
    if not args.distributed and given == (None,) * 4:
        return None
    return find_member(
        distributed=args.distributed,
        coordinator=args.coordinator,
        num_processes=args.num_processes,
        process_id=args.process_id,
        local_processes=args.local_processes,
    )


def _at_least(least: int, text: str) -> int:
    try:
        value = int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer") from error
    if value < least:
        raise argparse.ArgumentTypeError(f"{value} must be at least {least}")
    return value
