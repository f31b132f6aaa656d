"""The command line of `train.py` and `vig train`.

The config is one of `vig_jax.config.named`, or a Python file outside of the package, loaded by
path. It and the `--config.key=value` options are checked before anything is computed, and a mistake
ends in one line without a traceback.
"""

import contextlib
import functools
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from vig_jax.config import import_plugins, named, parse
from vig_jax.devices import open_devices_early
from vig_jax.errors import REPORTED_ERRORS, ConfigError, is_full_disk
from vig_jax.text import did_you_mean, escape_output, is_utf8
from vig_jax.train.processes import OPTIONS, find_member, joined

_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "The experiment: a name that --list prints, or a file like those of configs/. Any setting can "
    "be changed with --config.KEY=VALUE, for example --config.optimizer.base_lr=5e-4; "
    "vig_jax/config/recipes.py lists them all.",
)
flags.DEFINE_bool("list", False, "Prints the names that --config knows, and ends.")
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Folder for checkpoints and metrics, and of an interrupted run to resume. Default: runs/ and "
    "the name of the config.",
)
_PLUGIN = flags.DEFINE_multi_string(
    "plugin",
    [],
    "A module to import, which registers what the config names; see docs/extending.md.",
)
_DISTRIBUTED = flags.DEFINE_bool("distributed", None, OPTIONS["distributed"])
_COORDINATOR = flags.DEFINE_string("coordinator", None, OPTIONS["coordinator"])
_NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, OPTIONS["num_processes"], lower_bound=1
)
_PROCESS_ID = flags.DEFINE_integer("process_id", None, OPTIONS["process_id"], lower_bound=0)
_LOCAL_PROCESSES = flags.DEFINE_integer(
    "local_processes", None, OPTIONS["local_processes"], lower_bound=1
)
STOPPED_STATUS = 76
"""The exit status of a run that a signal has ended early, after saving."""

_USAGE = """Trains a model.

    train.py --config=configs/vig_b.py [--config.KEY=VALUE ...] [--workdir=DIR]

The same command resumes an interrupted run."""


def main(argv: Sequence[str] | None = None) -> None:
    """Parses the arguments, trains, and exits the process.

    Args:
        argv: program name and arguments; None: those of the process.
    """
    escape_output()
    if argv is not None:
        sys.argv = list(argv)  # ml_collections looks for --config.KEY there
    argv = sys.argv = _with_named_config(sys.argv)
    for place in _config_roots(argv):
        if place not in sys.path:
            sys.path.append(place)
    app.run(_train, argv=argv, flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses flags with absl, but with our help text and one-line errors."""
    if {"--help", "-help", "--helpshort", "-h"} & set(argv):
        print(_USAGE)
        print(flags.FLAGS.module_help(sys.modules[__name__]))
        sys.exit(0)
    if {"--list", "-list"} & set(argv):
        for name, config in named.NAMED.items():
            print(f"{name:<18}{config.description}")
        sys.exit(0)
    for option in (argument.partition("=")[0] for argument in argv):
        if not is_utf8(option):
            _fail(f"{option} is not an option; settings are given as --config.KEY=VALUE")
    for path in _config_files(argv):
        if not path.is_file():
            known = _known_configs(path.parent)
            reason = "is a folder" if path.is_dir() else "does not exist"
            _fail(f"--config={path} {reason}; {did_you_mean(str(path), known)}")
    try:
        return list(flags.FLAGS(argv))
    except flags.Error as error:
        hint = ""
        if "--config.data.image_size=" in str(error):
            hint = "; it is the side of square images, config.data.eval_size=(HEIGHT,WIDTH) is the "
            hint += "size of those for evaluation if they are not square"
        _fail(f"{error}{hint}")
    except (AttributeError, KeyError) as error:  # what ml_collections raises for unknown settings
        if any(frame.name == "get_config" for frame in traceback.extract_tb(error.__traceback__)):
            raise  # the config file's own mistake: the traceback names its line
        _fail(_unknown_setting(str(error), argv))


def _unknown_setting(message: str, argv: Sequence[str]) -> str:
    """Returns a clear message for an error of ml_collections about an unknown setting."""
    key = re.findall(r"\w+", message)[0]
    near = re.search(r'Did you mean "(\w+)"', message)
    given = [a for a in argv if key in a.partition("=")[0].split(".")]
    hint = f"did you mean {near[1]!r}?" if near else "vig_jax/config/recipes.py lists them all"
    return f"{(given or argv)[0]}: there is no setting {key!r}; {hint}"


def _train(argv: Sequence[str]) -> None:
    # Orbax logs every file it writes through absl.
    for library in ("absl", "jax", "matplotlib"):
        logging.getLogger(library).setLevel(logging.WARNING)
    # Without this, absl begins each line with time, thread and file.
    absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(message)s"))
    if len(argv) > 1:
        _fail(f"{' '.join(argv[1:])!r} is not an option; settings are given as --config.KEY=VALUE")
    values = _CONFIG.value
    if values is None:
        known = ", ".join(_known_configs(Path("configs")))
        _fail(f"--config=NAME or --config=FILE is missing; known: {known}")
    config_file = config_flags.get_config_filename(flags.FLAGS["config"])
    workdir = _expand(Path(_WORKDIR.value or Path("runs") / _name_of(config_file)))
    try:
        with values.unlocked():
            values.plugins = (*values.get("plugins", ()), *_PLUGIN.value)
        import_plugins(values.plugins)
        config = parse(values)
        member = find_member(
            distributed=_DISTRIBUTED.value,
            coordinator=_COORDINATOR.value,
            num_processes=_NUM_PROCESSES.value,
            process_id=_PROCESS_ID.value,
            local_processes=_LOCAL_PROCESSES.value,
        )
    except ConfigError as error:
        _fail(str(error))
    line_of = functools.partial(_message_of, workdir=workdir)
    with joined(member, config.train.lost_after_seconds, line_of) if member else _alone(line_of):
        open_devices_early()
        from vig_jax.train.loop import run  # imports JAX; --help works without it

        outcome = run(config, workdir)
        sys.exit(STOPPED_STATUS if outcome.stopped else 0)


@contextlib.contextmanager
def _alone(line_of: Callable[[Exception], str | None]) -> Iterator[None]:
    """Ends the process in one line if an error has one."""
    try:
        yield
    except Exception as error:
        line = line_of(error)
        if line is None:
            raise
        print(line, file=sys.stderr, flush=True)
        if not isinstance(error, REPORTED_ERRORS):
            os._exit(2)  # leaving in order would wait for threads that wait for a full disk
        sys.exit(2)


def _message_of(error: Exception, workdir: Path) -> str | None:
    """Returns the line that reports an error to the user; None: it is a defect."""
    if isinstance(error, REPORTED_ERRORS):
        notes = getattr(error, "__notes__", [])
        # Grain adds notes about the traceback.
        return "\n".join([f"error: {error}", *(note for note in notes if "Grain" not in note)])
    if isinstance(error, OSError | ValueError) and is_full_disk(error):
        return (
            f"error: the disk of {workdir} is full ({str(error)[:200]}). Free some space: the same "
            "command then resumes from the newest checkpoint. config.train.keep_checkpoints is the "
            "number of checkpoints to keep"
        )
    return None


def _config_roots(argv: Sequence[str]) -> list[str]:
    """Returns the folders that config files may import from."""
    files = [path for path in _config_files(argv) if path != Path(named.__file__)]
    return [str(root) for root in (Path.cwd(), *(file.resolve().parent.parent for file in files))]


def _config_files(argv: Sequence[str]) -> list[Path]:
    """Returns the files that --config names."""
    files = []
    for here, following in zip(argv, [*argv[1:], ""], strict=True):
        name, _, value = here.lstrip("-").partition("=")
        if here.startswith("-") and name == "config":
            files.append(Path((value or following).split(":")[0]))  # after a colon: an argument
    return files


def _with_named_config(argv: Sequence[str]) -> list[str]:
    """Returns the arguments with a file in place of the name of a config.

    The file is a page of that name in `configs/`, if there is one, or else `vig_jax.config.named`.
    """
    arguments = list(argv)
    for index, argument in enumerate(arguments):
        option, equals, value = argument.rpartition("=")
        is_value = option.lstrip("-") == "config" or arguments[index - 1].lstrip("-") == "config"
        if index == 0 or not is_value or Path(value).exists():
            continue
        name = Path(value).stem
        page = Path("configs") / f"{name}.py"
        if value in (name, page.name, str(page)):
            if page.is_file():
                arguments[index] = f"{option}{equals}{page}"
            elif name in named.NAMED:
                arguments[index] = f"{option}{equals}{named.__file__}:{name}"
    return arguments


def _name_of(config_file: str) -> str:
    """Returns the name of the config that a file, with the argument after its colon, stands for."""
    file, _, argument = config_file.partition(":")
    return argument if file == named.__file__ else Path(file).stem


def _known_configs(folder: Path) -> list[str]:
    """Returns the config files of a folder, or if it has none, the names of all configs."""
    return [str(page) for page in _pages(folder)] or list(named.NAMED)


def _pages(folder: Path) -> list[Path]:
    """Returns the config files of a folder."""
    return sorted(path for path in folder.glob("*.py") if path.stem != "common")


def _expand(path: Path) -> Path:
    """Returns the path with the user's home in place of "~"."""
    try:
        return path.expanduser()
    except RuntimeError:
        _fail(f"--workdir={path}: this user has no home folder; give the full path")


def _fail(message: str) -> NoReturn:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
