"""Loggers: where the metrics of a run go besides metrics.jsonl and the console.

`config.train.loggers` chooses them by name. `register_logger` adds one from outside of the package.
"""

import dataclasses
import importlib
import importlib.util
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from vig_jax.errors import ConfigError, UserError, is_full_disk
from vig_jax.text import did_you_mean, first_line

_LOG = logging.getLogger("vig_jax")


@dataclasses.dataclass(frozen=True)
class LoggedRun:
    """A run, as a logger gets it.

    Attributes:
        workdir: exists; a place for files and for the identity of the run in another system.
        start_step: updates already done; above 0 the run resumes.
        config: all settings, nested, as in config.json.
    """

    workdir: Path
    start_step: int
    config: Mapping[str, Any]


@runtime_checkable
class Logger(Protocol):
    """Receives the metrics of one run, in the first process."""

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records metrics by name after `step` updates; a resumed run may repeat steps."""

    def image(self, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        """Records an image of the run's beginning."""

    def close(self) -> None:
        """Writes what is left."""


Opener = Callable[[LoggedRun], Logger]

# Module, class, and the package that it needs with the extra that installs it.
_BUILT_IN = {
    "tensorboard": ("vig_jax.train.logging.tensorboard", "TensorBoardLogger", "tensorboardX", ""),
    "wandb": ("vig_jax.train.logging.wandb", "WandbLogger", "wandb", "wandb"),
    "mlflow": ("vig_jax.train.logging.mlflow", "MlflowLogger", "mlflow", "mlflow"),
}
_REGISTERED: dict[str, Opener] = {}


def register_logger(name: str, open: Opener) -> None:
    """Makes a logger available in `config.train.loggers`.

    Args:
        name: not in use yet.
        open: returns the logger of a run.

    Raises:
        ConfigError: the name is in use.
    """
    if name in _BUILT_IN or name in _REGISTERED:
        raise ConfigError(f"{name!r} is the name of a logger already: choose another one")
    _REGISTERED[name] = open


def check_loggers(names: Sequence[str]) -> None:
    """Checks that all names of `config.train.loggers` are known, and their packages installed.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if name not in (*_BUILT_IN, *_REGISTERED):
            hint = did_you_mean(name, (*_BUILT_IN, *_REGISTERED))
            raise ConfigError(f"config.train.loggers: {name!r} is not a logger; {hint}")
        _, _, package, extra = _BUILT_IN.get(name, ("", "", "", ""))
        if package and importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"config.train.loggers: {name!r} needs the package {package}: "
                f"pip install 'vig-jax[{extra}]'"
            )


def open_loggers(names: Sequence[str], run: LoggedRun) -> list[Logger]:
    """Returns the loggers of `config.train.loggers`, opened.

    After that a logger cannot end the run: if it fails, for example because a server is gone, that
    is logged once, and the run continues without it.

    Raises:
        ConfigError: a logger is unknown or cannot begin.
    """
    check_loggers(names)
    opened: list[Logger] = []
    for name in names:
        try:
            logger: Logger = _opener(name)(run)
        except Exception as error:
            for other in opened:
                other.close()
            if isinstance(error, UserError) or is_full(error):
                raise
            raise ConfigError(
                f"config.train.loggers: {name!r} cannot begin: {first_line(error)}"
            ) from error
        opened.append(_Guarded(name, logger))
    return opened


def _opener(name: str) -> Opener:
    """Returns the function that opens a logger."""
    if name in _REGISTERED:
        return _REGISTERED[name]
    module, kind, _, _ = _BUILT_IN[name]
    opener: Opener = getattr(importlib.import_module(module), kind)
    return opener


def is_full(error: Exception) -> bool:
    """Returns whether the disk is full."""
    return isinstance(error, OSError | ValueError) and is_full_disk(error)


class _Guarded:
    """Drops a logger that fails, except for a full disk."""

    def __init__(self, name: str, logger: Logger) -> None:
        self._name = name
        self._logger: Logger | None = logger

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        self._call("scalars", step, metrics)

    def image(self, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        self._call("image", name, pixels)

    def close(self) -> None:
        self._call("close")

    def _call(self, method: str, *arguments: Any) -> None:
        if self._logger is None:
            return
        try:
            getattr(self._logger, method)(*arguments)
        except Exception as error:  # of another package
            self._logger = None
            if is_full(error):
                raise
            _LOG.warning(
                "the logger %r has failed (%s); the run continues without it",
                *(self._name, first_line(error)),
            )
