"""Folders of checkpoints as Orbax writes and reads them; no other module calls Orbax.

A checkpoint has items: trees of arrays, and the JSON object `run`. Arrays are written in the
background. Each process writes the shards that it holds, and reads those that it needs, so the
devices and processes that read may differ from those that wrote.

Orbax's second interface is `orbax.checkpoint.experimental.v1` in version 0.12. It is not used: it
is still experimental, its `Checkpointer` wraps the `CheckpointManager` that is used here, and it
has no `todelete_subdir`. Without that, a process killed while deleting leaves a part of a
checkpoint under its final name.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

DELETED = ".deleted"
"""Subfolder for checkpoints that are about to be deleted."""
_ITEMS_FILE = "_CHECKPOINT_METADATA"  # written by Orbax when a checkpoint is complete


class CheckpointFolder:
    """The checkpoints of one folder, as subfolders named by their step.

    All processes of a run must make the same calls in the same order.
    """

    def __init__(
        self, folder: Path, *, keep: Callable[[Sequence[int]], Sequence[bool]] | None = None
    ) -> None:
        """Opens or creates the folder; drafts that a killed process has left are removed.

        Args:
            folder: any path.
            keep: gets all steps, oldest first, and returns which checkpoints to keep. The newest
                may still be incomplete. None: all are kept.
        """
        self._manager = _Manager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=_Policy(keep) if keep else None,
                cleanup_tmp_directories=True,
                # Renaming is atomic. A process killed while deleting leaves a part of a folder.
                todelete_subdir=DELETED,
            ),
        )

    def close(self) -> None:
        """Waits for writes and ends the threads."""
        self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def reload(self) -> None:
        """Reads the list of checkpoints from disk again."""
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything is on disk."""
        self._manager.wait_until_finished()

    def save(self, step: int, trees: Mapping[str, Any], run: Mapping[str, Any]) -> None:
        """Starts writing a checkpoint; the arrays may be donated right after.

        Args:
            step: names the checkpoint.
            trees: of arrays, by item.
            run: the JSON object of the item `run`.
        """
        items = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(run=ocp.args.JsonSave(dict(run)), **items),
            force=True,  # the caller decides when
        )

    def restore(self, step: int, shapes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns items of a checkpoint.

        Args:
            step: of the checkpoint.
            shapes: trees of shapes with shardings, by item.
        """
        items = {name: ocp.args.StandardRestore(tree) for name, tree in shapes.items()}
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        return {name: restored[name] for name in shapes}


class _Manager(ocp.CheckpointManager):
    """Leaves JAX's preemption service to the training loop.

    Orbax asks it for the sync point at every save, also in the thread that writes. Each question
    has the number of a step, and a number from another place confuses the service.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class _Policy(checkpoint_managers.PreservationPolicy):
    def __init__(self, keep: Callable[[Sequence[int]], Sequence[bool]]) -> None:
        self._keep = keep

    def should_preserve(
        self,
        checkpoints: Sequence[Any],  # with a `step`
        *,
        context: checkpoint_managers.PreservationContext,
    ) -> Sequence[bool]:
        return self._keep([checkpoint.step for checkpoint in checkpoints])


def is_complete(directory: Path) -> bool:
    """Returns whether a checkpoint has all its items; a process that is killed may leave a part."""
    try:
        items = json.loads((directory / _ITEMS_FILE).read_text(encoding="utf-8"))["item_handlers"]
    except (OSError, ValueError, KeyError):
        return False
    return all((directory / name).is_dir() for name in items)


def read_shapes(item: Path) -> Any:
    """Returns the tree of shapes and dtypes of a stored item."""
    return ocp.StandardCheckpointHandler().metadata(item).tree


def read_tree(item: Path, shapes: Any) -> Any:
    """Returns the arrays of a stored item.

    Args:
        item: its folder in a checkpoint.
        shapes: the tree of shapes with shardings.
    """
    return ocp.StandardCheckpointHandler().restore(item, args=ocp.args.StandardRestore(shapes))
