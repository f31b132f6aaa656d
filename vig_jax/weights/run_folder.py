"""The layout of a run's checkpoints on disk: reading them, and writing bare weights.

`vig_jax.train.checkpoint` writes the checkpoints of training and documents their items.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from jax.sharding import Sharding, SingleDeviceSharding

from vig_jax.config import RunConfig, parse, unknown_settings
from vig_jax.errors import CheckpointError, ConfigError

CHECKPOINTS = "checkpoints"


def find_checkpoint(path: Path, ema: bool | None = None) -> Path:
    """Returns the directory of one checkpoint.

    Args:
        path: absolute; a workdir, its `checkpoints` folder, or one checkpoint's directory. Of
            several checkpoints the best by the task's primary metric is taken, or else the newest.
        ema: which weights are compared: False the raw ones, else the EMA weights if there are any.

    Raises:
        CheckpointError: there is none.
    """
    if (path / "params").is_dir() and (path / "run").is_dir():
        return path
    found = finished(path / CHECKPOINTS) or finished(path)
    if not found:
        raise CheckpointError(
            f"{path} holds no finished checkpoint: name a workdir of train.py (with "
            f"{CHECKPOINTS}/<step> in it) or one such <step> directory"
        )
    return max(found, key=lambda d: (score(read_run(d), ema), int(d.name)))


def finished(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in a folder; incomplete ones have a longer name."""
    return [d for d in folder.iterdir() if d.name.isdigit()] if folder.is_dir() else []


def read_run(directory: Path) -> dict[str, Any]:
    """Returns the `run` item of a checkpoint, in the layout of this version."""
    stored = json.loads((directory / "run" / "metadata").read_text(encoding="utf-8"))
    # Version 0.1.0 knew classification only.
    if "class_names" in stored:
        stored["metadata"] = {"class_names": stored.pop("class_names")}
    return {"primary_metric": "top1"} | stored


def read_config(directory: Path) -> RunConfig:
    """Returns the config that a checkpoint was written with.

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
        raise CheckpointError(f"{where}: {error}. Use that version, or correct it there") from error


def score(run: Mapping[str, Any], ema: bool | None = None) -> float:
    """Returns the primary metric of a checkpoint; minus infinity if it was not evaluated.

    Args:
        run: from `read_run`.
        ema: False: that of the raw weights; else that of the EMA weights, if there are any.
    """
    metrics, name = run["metrics"], run["primary_metric"]
    raw = float(metrics.get(f"eval/{name}", -math.inf))
    return raw if ema is False else float(metrics.get(f"eval/ema_{name}", raw))


def choose_item(directory: Path, *, ema: bool | None) -> str:
    """Returns the item of a checkpoint's weights: "ema_params" or "params".

    Args:
        directory: of the checkpoint.
        ema: whether to take the EMA weights; None takes them if there are any.

    Raises:
        CheckpointError: EMA weights are requested and there are none.
    """
    has_ema = (directory / "ema_params").is_dir()
    if ema and not has_ema:
        raise CheckpointError(f"{directory} has no EMA weights: use ema=False")
    return "ema_params" if (has_ema if ema is None else ema) else "params"


def read_params(directory: Path, item: str) -> Any:
    """Returns the stored parameter tree of one item, without knowing the model."""
    return _read_tree(
        directory / item, ocp.StandardCheckpointHandler().metadata(directory / item).tree
    )


def restore_tree(where: Path, expected: Any) -> Any:
    """Returns a stored tree on the first local device.

    Args:
        where: the folder of the item.
        expected: the tree that it must be, as shapes.

    Raises:
        CheckpointError: the stored tree has other names or shapes.
    """
    check_same_tree(expected, where)
    return _read_tree(where, expected)


def save_weights(workdir: Path, weights: Mapping[str, Any], run: Mapping[str, Any]) -> None:
    """Writes weights without a training state as the checkpoint of step 0.

    Args:
        workdir: a new folder.
        weights: parameter trees: `params`, and `ema_params` if there are EMA weights.
        run: the `run` item; its `origin` describes each of the weights.
    """
    items = {name: ocp.args.StandardSave(tree) for name, tree in weights.items()}
    with ocp.CheckpointManager((workdir / CHECKPOINTS).absolute()) as manager:
        manager.save(0, args=ocp.args.Composite(run=ocp.args.JsonSave(dict(run)), **items))


def check_same_tree(expected: Any, where: Path) -> None:
    """Checks that a stored tree has the expected names and shapes.

    Raises:
        CheckpointError: names the first differences.
    """
    stored = ocp.StandardCheckpointHandler().metadata(where).tree
    new, old = _shapes(expected), _shapes(stored)
    wrong = [
        f"{name}: {old.get(name, 'absent')} stored, {new.get(name, 'absent')} in the model"
        for name in sorted(new.keys() | old.keys())
        if new.get(name) != old.get(name)
    ]
    if wrong:
        more = [f"... and {len(wrong) - 5} more"] if len(wrong) > 5 else []
        raise CheckpointError(
            f"{where} does not fit the model:\n  " + "\n  ".join(wrong[:5] + more)
        )


def with_sharding(tree: Any, sharding: Sharding) -> Any:
    """Returns the shapes of a tree, to be restored with a sharding."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _read_tree(where: Path, shapes: Any) -> Any:
    here = SingleDeviceSharding(jax.local_devices()[0])
    return ocp.StandardCheckpointHandler().restore(
        where, args=ocp.args.StandardRestore(with_sharding(shapes, here))
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a tree's leaves by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
