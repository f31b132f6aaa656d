"""Checkpoint folders of our own runs, as far as weights go.

`vig_jax.train.checkpoint` writes them and says what is in them.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from vig_jax.config import RunConfig, parse, unknown_settings
from vig_jax.errors import CheckpointError, ConfigError

CHECKPOINTS = "checkpoints"


def find_checkpoint(path: Path, headline: str, ema: bool | None = None) -> Path:
    """The directory of one checkpoint for a workdir, its `checkpoints`, or such a directory.

    Args:
        path: absolute.
        headline: the metric by which the best of several is taken; else the newest.
        ema: which weights are to be best: False the raw ones, else the averaged, if there are any.

    Raises:
        CheckpointError: there is none.
    """
    if (path / "params").is_dir() and (path / "run").is_dir():
        return path
    found = finished(path / CHECKPOINTS) or finished(path)
    if not found:
        raise CheckpointError(
            f"{path} holds no finished checkpoint: a workdir of train.py (with "
            f"{CHECKPOINTS}/<step> in it) or one such <step> directory is wanted"
        )
    return max(found, key=lambda d: (score(read_run(d)["metrics"], headline, ema), int(d.name)))


def finished(folder: Path) -> list[Path]:
    """The checkpoints in a folder; one that is being written has a longer name."""
    return [d for d in folder.iterdir() if d.name.isdigit()] if folder.is_dir() else []


def read_run(directory: Path) -> dict[str, Any]:
    """The `run` item of a checkpoint."""
    return json.loads((directory / "run" / "metadata").read_text(encoding="utf-8"))


def read_config(directory: Path) -> RunConfig:
    """The config that a checkpoint was written with.

    Raises:
        CheckpointError: it is not one of this version.
    """
    stored = read_run(directory)["config"]
    where = f"{directory / 'run' / 'metadata'} was written by another version of vig_jax"
    if unknown := unknown_settings(stored):
        raise CheckpointError(
            f"{where}: its config has settings that this one does not know: {', '.join(unknown)}. "
            "Use the version that wrote it; or, if the run can do without them, delete them there"
        )
    try:
        return parse(stored)
    except ConfigError as error:
        raise CheckpointError(f"{where}: {error}. Use that version, or mend it there") from error


def score(metrics: Mapping[str, float], headline: str, ema: bool | None = None) -> float:
    """What a checkpoint is worth: the headline metric of its averaged weights, or its raw ones.

    Args:
        metrics: of its evaluation; empty if there was none.
        headline: of the task.
        ema: False: the raw ones; else the averaged, if there are any.
    """
    raw = metrics.get(f"eval/{headline}", -math.inf)  # not evaluated: worth less than any other
    return raw if ema is False else metrics.get(f"eval/ema_{headline}", raw)


def choose_item(directory: Path, *, ema: bool | None) -> str:
    """The name of a checkpoint's weights: averaged if asked for, or if there are any and `None`.

    Raises:
        CheckpointError: averaged weights are asked for and there are none.
    """
    has_ema = (directory / "ema_params").is_dir()
    if ema and not has_ema:
        raise CheckpointError(f"{directory} has no averaged weights: ask for ema=False")
    return "ema_params" if (has_ema if ema is None else ema) else "params"


def read_params(directory: Path, item: str) -> Any:
    """The stored parameter tree of one item, whatever model it is of."""
    here = SingleDeviceSharding(jax.local_devices()[0])
    handler = ocp.StandardCheckpointHandler()
    stored = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here),
        handler.metadata(directory / item).tree,
    )
    return handler.restore(directory / item, args=ocp.args.StandardRestore(stored))
