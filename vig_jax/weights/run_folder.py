"""The layout of a run's checkpoints on disk: reading them, and writing bare weights.

`vig_jax.train.checkpoint` writes the checkpoints of training and documents their items.
"""

import concurrent.futures
import contextlib
import json
import logging
import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import SingleDeviceSharding

from vig_jax.config import RunConfig, parse, unknown_settings
from vig_jax.config.plugins import check_plugins
from vig_jax.errors import CheckpointError, ConfigError, DamagedCheckpointError, UserError
from vig_jax.files import check_utf8
from vig_jax.text import preview_names
from vig_jax.weights.orbax_store import CheckpointFolder, is_complete, read_shapes, read_tree

CHECKPOINTS = "checkpoints"

_LOG = logging.getLogger("vig_jax")


def find_checkpoint(path: Path, ema: bool | None = None) -> Path:
    """Returns the directory of one checkpoint.

    Args:
        path: absolute; a workdir, its `checkpoints` folder, or one checkpoint's directory. Of
            several checkpoints the best by the task's primary metric is taken, or else the newest.
        ema: which weights are compared: False the raw ones, else the EMA weights if there are any.

    Raises:
        CheckpointError: there is none.
        ConfigError: the path is not UTF-8.
    """
    check_utf8(path, "Orbax")
    if (path / "params").is_dir() and (path / "run").is_dir():
        return path
    found = finished(path / CHECKPOINTS) or finished(path)
    if not found:
        raise CheckpointError(
            f"{path} holds no finished checkpoint: name a workdir of train.py (with "
            f"{CHECKPOINTS}/<step> in it) or one such <step> directory"
        )
    runs = {}
    for directory in found:
        try:
            runs[directory] = read_run(directory)
        except DamagedCheckpointError as error:
            _LOG.warning("skipping a checkpoint: %s", error)
    if not runs:
        raise CheckpointError(f"all checkpoints in {path} are damaged")
    return max(runs, key=lambda d: (score(runs[d], ema), int(d.name)))


def finished(folder: Path) -> list[Path]:
    """Returns the complete checkpoints in a folder, oldest first."""
    steps = [d for d in folder.iterdir() if d.name.isdigit()] if folder.is_dir() else []
    return sorted((d for d in steps if is_complete(d)), key=lambda d: int(d.name))


@contextlib.contextmanager
def reading(directory: Path) -> Iterator[None]:
    """Turns the errors of Orbax, TensorStore and JSON about a file into ours.

    Raises:
        DamagedCheckpointError: names the checkpoint and the reason.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each library and each kind of damage has another type
        reason = (str(error).splitlines() or [""])[0][:200]
        raise DamagedCheckpointError(
            f"{directory} is damaged ({type(error).__name__}: {reason}): restore it from a copy, "
            "or remove it"
        ) from error


def read_run(directory: Path) -> dict[str, Any]:
    """Returns the `run` item of a checkpoint, in the layout of this version.

    Raises:
        DamagedCheckpointError: it cannot be read.
        ConfigError: the run uses plugins that are not imported.
    """
    with reading(directory):
        stored = json.loads((directory / "run" / "metadata").read_text(encoding="utf-8"))
        check_plugins(stored["config"], directory)
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
    """Returns the primary metric of a checkpoint; minus infinity if there is none, or it is NaN.

    Args:
        run: from `read_run`.
        ema: False: that of the raw weights; else that of the EMA weights, if there are any.
    """
    metrics, name = run["metrics"], run["primary_metric"]
    value = metrics.get(f"eval/{name}", -math.inf)
    if ema is not False:
        value = metrics.get(f"eval/ema_{name}", value)
    return -math.inf if math.isnan(value) else float(value)


def metrics_of(run: Mapping[str, Any], item: str) -> dict[str, float]:
    """Returns the evaluation results of one item's weights by name, without the prefixes of logs.

    Args:
        run: from `read_run`.
        item: "ema_params" or "params".
    """
    ema, all_of_them = "eval/ema_", run["metrics"]
    prefix = ema if item == "ema_params" else "eval/"
    return {
        name.removeprefix(prefix): value
        for name, value in all_of_them.items()
        if name.startswith(prefix) and name.startswith(ema) == (prefix == ema)
    }


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


def read_variables(directory: Path, item: str) -> dict[str, Any]:
    """Returns the stored variables of "params" or "ema_params", without knowing the model."""
    stored = {}
    for name in (item, mutable_item(item)):
        if (directory / name).is_dir():
            with reading(directory):
                shapes = read_shapes(directory / name)
            stored[name] = _read_tree(directory / name, shapes)
    return {"params": stored[item], **stored.get(mutable_item(item), {})}


def mutable_item(item: str) -> str:
    """Returns the item of the mutable collections that belong to "params" or "ema_params"."""
    return item.replace("params", "mutable")


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
        weights: trees by item: `params`, `ema_params` if there are EMA weights, and `mutable` and
            `ema_mutable` if the model has mutable collections.
        run: the `run` item; its `origin` describes each of the weights.

    Raises:
        ConfigError: the path is not UTF-8.
    """
    check_utf8(workdir, "Orbax")
    run = dict(run) | {"digests": {name: digests(tree) for name, tree in weights.items()}}
    folder = CheckpointFolder(workdir / CHECKPOINTS)
    folder.save(0, weights, run)
    folder.close()


def check_same_tree(expected: Any, where: Path) -> None:
    """Checks that a stored tree has the expected names and shapes.

    Raises:
        CheckpointError: names the first differences.
    """
    with reading(where.parent):
        stored = read_shapes(where)
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


def with_sharding(tree: Any, sharding: Any) -> Any:
    """Returns the shapes of a tree, to be restored with one sharding or a tree of shardings."""
    return jax.tree.map(
        lambda x, split: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split),
        tree,
        jax.tree.broadcast(sharding, tree),
    )


def _read_tree(where: Path, shapes: Any) -> Any:
    here = SingleDeviceSharding(jax.local_devices()[0])
    with reading(where.parent):
        tree = read_tree(where, with_sharding(shapes, here))
    check_digests(tree, read_run(where.parent), where)
    return tree


def digests(tree: Any) -> dict[str, str]:
    """Returns the CRC-32 of every leaf by its path; it does not depend on how a leaf is split.

    Leaves that are split over several processes are gathered, one at a time. All processes must
    call this.
    """
    leaves = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    exchanged = {
        name: _crc32(process_allgather(x, tiled=True))
        for name, x in leaves.items()
        if not _is_local(x)
    }
    local = {name: leaf for name, leaf in leaves.items() if name not in exchanged}
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return exchanged | dict(zip(local, pool.map(_crc32, local.values()), strict=True))


def _is_local(leaf: Any) -> bool:
    """Returns whether this process holds all of a leaf."""
    whole = not isinstance(leaf, jax.Array) or leaf.is_fully_replicated
    return whole or leaf.is_fully_addressable


def _crc32(leaf: Any) -> str:
    replica = isinstance(leaf, jax.Array) and leaf.is_fully_replicated
    local = np.asarray(leaf.addressable_data(0) if replica else leaf)
    contents = np.ascontiguousarray(local).reshape(-1).view(np.uint8)
    return f"{zlib.crc32(contents.data):08x}"


def check_digests(tree: Any, run: Mapping[str, Any], where: Path) -> None:
    """Checks restored arrays against the digests that were stored with them.

    Args:
        tree: the restored item.
        run: the `run` item; checkpoints of version 0.1.0 have no digests.
        where: the folder of the item.

    Raises:
        DamagedCheckpointError: names the arrays that differ.
    """
    stored = run.get("digests", {}).get(where.name, {})
    now = digests(tree) if stored else {}
    wrong = [name for name, digest in now.items() if stored.get(name, digest) != digest]
    if wrong:
        raise DamagedCheckpointError(
            f"{where} is damaged: the digests of {len(wrong)} arrays differ "
            f"({preview_names(wrong, 3)}): restore it from a copy, or remove it"
        )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of a tree's leaves by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in leaves
    }
