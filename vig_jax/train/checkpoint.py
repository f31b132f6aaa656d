"""Checkpoints of a run: saving them, and restoring them for training or for inference.

A workdir holds `checkpoints/<step>/`. Each is complete or absent, and has the items

- `params`, and `ema_params` if there is an EMA: parameter trees;
- `mutable`, and `ema_mutable`: mutable collections such as batch statistics, if the model has any;
- `training`: optimizer state, step and random key;
- `run`: JSON of the resolved config, the data set's metadata and fingerprints, the seed, the data
  position, the primary metric, the evaluation results and a CRC-32 of every array, which is
  verified when the checkpoint is read.

Converted weights have no `training`; their `run` names their origin.

The newest `keep_checkpoints` are kept, and the best ones by the primary metric: that of the EMA
weights and that of the raw ones.
"""

import dataclasses
import functools
import logging
import math
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from vig_jax.config import RunConfig, to_dict
from vig_jax.errors import CheckpointError, ConfigError, DamagedCheckpointError
from vig_jax.folder_lock import FolderLock
from vig_jax.sharding.rules import shardings
from vig_jax.train.state import TrainState
from vig_jax.weights.orbax_store import DELETED, CheckpointFolder, is_complete
from vig_jax.weights.run_folder import (
    CHECKPOINTS,
    check_digests,
    check_same_tree,
    digests,
    read_config,
    read_run,
    reading,
    score,
    with_sharding,
)

DAMAGED = "damaged_checkpoints"  # folder of a workdir
_LOG = logging.getLogger("vig_jax")

# Settings that may change when a run is resumed: they affect where and how fast, not the result.
# Another GLA implementation, another mesh, or remat may round differently; then the run is not
# bit-identical.
MUTABLE_KEYS = (
    "plugins",
    "model.gla_implementation",
    "model.remat",
    "data.path",
    "data.workers",
    "data.prefetch",
    "data.resize",
    "data.max_bad_images",
    "data.max_image_pixels",
    "data.damaged_jpegs",
    "data.image_seconds",
    "train.log_every_steps",
    "train.loggers",
    "train.eval_every_epochs",
    "train.eval_every_steps",
    "train.eval_every_examples",
    "train.checkpoint_every_epochs",
    "train.checkpoint_every_steps",
    "train.checkpoint_every_examples",
    "train.keep_checkpoints",
    "train.compilation_cache",
    "train.lost_after_seconds",
    "mesh.data",
    "mesh.fsdp",
    "mesh.sequence",
)


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The facts that identify a run, besides its arrays.

    Attributes:
        config: resolved.
        metadata: of the training data set, see `vig_jax.data.dataset.DatasetInfo`.
        data_fingerprint: of the training data.
        eval_fingerprint: of the evaluation data.
        primary_metric: of the task.
    """

    config: RunConfig
    metadata: Mapping[str, Any]
    data_fingerprint: str
    eval_fingerprint: str
    primary_metric: str

    def to_json(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Returns the `run` item of the checkpoint at `step`, with its evaluation results."""
        return {
            "config": to_dict(self.config),
            "metadata": dict(self.metadata),
            "data_fingerprint": self.data_fingerprint,
            "eval_fingerprint": self.eval_fingerprint,
            "seed": self.config.seed,
            "data_position": step,  # global batches consumed; with the seed it determines the rest
            "primary_metric": self.primary_metric,
            "metrics": dict(metrics),
        }


class Restored(NamedTuple):
    """A checkpoint read back to resume a run.

    Attributes:
        step: number of updates done.
        state: on the devices.
        metrics: evaluation results at this step; may be empty.
        unlogged: metrics of updates since the last log step, see `DeviceMetrics`.
    """

    step: int
    state: TrainState
    metrics: dict[str, float]
    unlogged: Mapping[str, Any]


class Checkpoints:
    """The checkpoints of one workdir. Use as a context manager: leaving waits for writes."""

    def __init__(self, workdir: Path, *, keep: int, lock: FolderLock | None = None) -> None:
        """Opens or creates `workdir/checkpoints`.

        Incomplete checkpoints, which a killed process may leave, are removed.

        Args:
            workdir: of the run.
            keep: number of newest checkpoints to keep.
            lock: of the workdir; nothing is saved if another process has taken it over.

        Raises:
            ConfigError: `keep` is less than 1.
        """
        if keep < 1:
            raise ConfigError(f"config.train.keep_checkpoints is {keep}; it must be at least 1")
        self._directory = (workdir / CHECKPOINTS).absolute()
        self._lock = lock
        if jax.process_index() == 0:
            _remove_incomplete(self._directory)
        self._folder = CheckpointFolder(
            self._directory, keep=functools.partial(_newest_and_best, self._directory, keep)
        )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.close()
        self._empty_deleted()

    def latest(self) -> int | None:
        """Returns the newest complete step, or None."""
        return max(self._folder.steps(), default=None)

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._folder.wait()

    def save(
        self,
        step: int,
        state: TrainState,
        info: RunInfo,
        metrics: Mapping[str, float],
        unlogged: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts writing the checkpoint of `step`; the state may be donated right after.

        Args:
            step: updates done.
            state: what to write.
            info: the run it belongs to.
            metrics: evaluation results at this step; empty if there are none.
            unlogged: metrics of updates since the last log step, see `DeviceMetrics`.

        Raises:
            FolderInUseError: another process has taken over the workdir.
        """
        if self._lock is not None:
            self._lock.check()
        self._folder.wait()  # its thread moves checkpoints to the folder that is emptied here
        self._empty_deleted()
        trees = _items(state)
        run = info.to_json(step, metrics) | {
            "unlogged": dict(unlogged or {}),
            "digests": {name: digests(tree) for name, tree in trees.items()},
        }
        self._folder.save(step, trees, run)

    def restore_newest(self, like: TrainState, info: RunInfo, mesh: Mesh) -> Restored | None:
        """Reads the newest checkpoint that is not damaged.

        Damaged ones are moved to `damaged_checkpoints/` in the workdir, and a warning is logged.

        Args:
            like: the state to expect, as shapes.
            info: the run to resume.
            mesh: the devices to restore onto.

        Returns:
            None if there are no checkpoints.

        Raises:
            CheckpointError: all checkpoints are damaged, or they are of another config, data set or
                model.
        """
        steps = self._folder.steps()[::-1]
        for step in steps:
            directory = self._directory / str(step)
            try:
                state = self.restore(step, like, info, mesh)
            except DamagedCheckpointError as error:
                _LOG.warning("%s", error)
                if jax.process_index() == 0:
                    aside = self._directory.parent / DAMAGED / f"{step}-{uuid.uuid4().hex[:8]}"
                    aside.parent.mkdir(exist_ok=True)
                    directory.rename(aside)
                continue
            if step != steps[0]:
                _LOG.warning("resuming from the checkpoint of step %d instead", step)
                self._folder.reload()
            run = read_run(directory)
            return Restored(step, state, dict(run["metrics"]), run.get("unlogged", {}))
        if steps:
            raise CheckpointError(
                f"all checkpoints in {self._directory} are damaged: restore one from a copy, or "
                "start in a new --workdir"
            )
        return None

    def restore(self, step: int, like: TrainState, info: RunInfo, mesh: Mesh) -> TrainState:
        """Reads the state of `step` onto the mesh.

        Args:
            step: from `latest`.
            like: the state to expect, as shapes.
            info: the run to resume.
            mesh: the devices to restore onto; it may differ from the mesh that saved the arrays.

        Raises:
            DamagedCheckpointError: the checkpoint is damaged.
            CheckpointError: the checkpoint is of another config, data set or model.
        """
        directory = self._directory / str(step)
        run = read_run(directory)
        if not (directory / "training").is_dir():
            raise CheckpointError(
                f"{directory} holds converted weights, which cannot be resumed: name it in "
                "config.init_weights and give the run another --workdir"
            )
        _check_same_run(run, info, directory)
        expected = _items(like)
        for name in expected.keys() - {"training"}:
            check_same_tree(expected[name], directory / name)
        shapes = _items(with_sharding(like, shardings(like, mesh)))
        with reading(directory):
            items = self._folder.restore(step, shapes)
        for name in expected:
            check_digests(items[name], run, directory / name)
        return TrainState(
            params=items["params"],
            ema_params=items["ema_params"] if "ema_params" in expected else None,
            mutable=items["mutable"] if "mutable" in expected else {},
            ema_mutable=items["ema_mutable"] if "ema_mutable" in expected else None,
            **items["training"],
        )

    def _empty_deleted(self) -> None:
        """Removes the checkpoints that Orbax has put aside for deletion."""
        if jax.process_index() == 0:
            shutil.rmtree(self._directory / DELETED, ignore_errors=True)


def _newest_and_best(folder: Path, newest: int, steps: Sequence[int]) -> list[bool]:
    """Returns which checkpoints to keep: the newest, and the best of the EMA and raw weights."""
    directories = [folder / str(step) for step in steps]
    # The newest is still being written; it is kept in any case.
    runs = [read_run(d) if is_complete(d) else None for d in directories]
    kept = set(range(len(steps))[-newest:])
    for ema in (None, False):
        scores = [(score(run, ema) if run else -math.inf, i) for i, run in enumerate(runs)]
        if scores:
            kept.add(max(scores)[1])
    return [i in kept for i in range(len(steps))]


def _remove_incomplete(folder: Path) -> None:
    """Removes checkpoints that were not completely written or not completely deleted."""
    shutil.rmtree(folder / DELETED, ignore_errors=True)
    for directory in folder.iterdir() if folder.is_dir() else ():
        if directory.name.isdigit() and not is_complete(directory):
            _LOG.warning("removing the incomplete checkpoint %s", directory)
            shutil.rmtree(directory)


def _items(state: TrainState) -> dict[str, Any]:
    """Returns the array items of a checkpoint."""
    items = {
        "params": state.params,
        "ema_params": state.ema_params,
        "mutable": state.mutable or None,
        "ema_mutable": state.ema_mutable,
        "training": {"opt_state": state.opt_state, "step": state.step, "key": state.key},
    }
    return {name: tree for name, tree in items.items() if tree is not None}


def _check_same_run(stored: Mapping[str, Any], info: RunInfo, where: Path) -> None:
    """Refuses to resume another run."""
    # Parsing fills in the settings that were added since.
    old, new = _flat(to_dict(read_config(where))), _flat(to_dict(info.config))
    changed = [
        f"config.{key}: {old.get(key, 'absent')!r} there, {new.get(key, 'absent')!r} now"
        for key in sorted(old.keys() | new.keys())
        if key not in MUTABLE_KEYS and _plain(old.get(key)) != _plain(new.get(key))
    ]
    if changed:
        raise CheckpointError(
            f"{where} is of another run:\n  "
            + "\n  ".join(changed)
            + "\ngive this run another --workdir, or set these back; free to change: "
            + ", ".join(MUTABLE_KEYS)
        )
    if stored["data_fingerprint"] != info.data_fingerprint:
        raise CheckpointError(
            f"{where} was trained on other data (fingerprint {stored['data_fingerprint']}, now "
            f"{info.data_fingerprint}): point config.data.path at the same images, or start in "
            "a new --workdir"
        )
    # Absent in older checkpoints.
    evaluated = stored.get("eval_fingerprint", info.eval_fingerprint)
    if evaluated != info.eval_fingerprint:
        raise CheckpointError(
            f"{where} was evaluated on other images (fingerprint {evaluated}, now "
            f"{info.eval_fingerprint}), so its earlier results cannot be compared with new ones: "
            "put the validation images back as they were, or start in a new --workdir. "
            "`vig evaluate RUN --data-path DIR` evaluates the run on others"
        )


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a nested dictionary as one dictionary with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _plain(value: Any) -> Any:
    """Returns a tuple as a list, as JSON stores it."""
    return list(value) if isinstance(value, tuple) else value
