"""A figure of the first batch as the model sees it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding
from jaxtyping import UInt8
from PIL import Image

from vig_jax.sharding.mesh import batch_sharded, replicated
from vig_jax.tasks.protocol import Batch, Preview, ShowsInputs
from vig_jax.train.programs import Programs
from vig_jax.train.step import PREPARE_INPUTS

PreviewStep = Callable[[Batch, jax.Array], Any]  # the compiled `Preview.inputs`
FIRST_BATCH_FILE = "first_batch.png"
_MOST_ROWS = 40


def make_preview_step(
    preview: Preview,
    *,
    mesh: jax.sharding.Mesh,
    accumulation_steps: int = 1,
    train_step: Programs | None = None,
) -> PreviewStep:
    """Compiles `(batch, key) -> arrays to draw` of update 0, of up to 40 examples.

    The rows are spread evenly over the batch and so over mixing groups.

    Args:
        preview: of the task.
        mesh: of the run.
        accumulation_steps: number of parts of a batch. Draws are made per part, so the rows are
            those of the first part.
        train_step: of the run; if it has a program for inputs, that is used instead of another one.
    """
    everywhere = replicated(mesh)
    if isinstance(preview, ShowsInputs) and train_step and PREPARE_INPUTS in train_step.programs:
        return _of_prepared(preview, train_step.programs[PREPARE_INPUTS], everywhere)

    def preview_inputs(batch: Batch, key: jax.Array) -> object:
        part = len(next(iter(batch.values()))) // accumulation_steps
        key = jax.random.fold_in(key, 0)  # the number of the update
        if accumulation_steps > 1:
            key = jax.random.fold_in(key, 0)  # the number of the part
        return preview.inputs({name: x[:part] for name, x in batch.items()}, key, _rows(part))

    return jax.jit(
        preview_inputs, in_shardings=(batch_sharded(mesh), everywhere), out_shardings=everywhere
    )


def _of_prepared(preview: ShowsInputs, prepare: Any, everywhere: NamedSharding) -> Programs:
    """Returns the preview step of inputs that a program of the training step prepares."""

    def preview_inputs(inputs: Any) -> Any:
        return preview.rows_of(inputs, _rows(len(jax.tree.leaves(inputs)[0])))

    def sequence(programs: Mapping[str, Any], batch: Batch, key: jax.Array) -> Any:
        return programs["rows"](programs[PREPARE_INPUTS](key, np.int32(0), batch))

    rows = jax.jit(preview_inputs, out_shardings=everywhere)
    return Programs({PREPARE_INPUTS: prepare, "rows": rows}, sequence)


def _rows(count: int) -> np.ndarray:
    """Returns the numbers of the examples to draw."""
    return np.unique(np.linspace(0, count - 1, min(count, _MOST_ROWS)).astype(int))


def draw_first_batch(
    preview: Preview, compute: PreviewStep, batch: Batch, key: jax.Array, *, path: Path
) -> UInt8[np.ndarray, "H W 3"] | None:
    """Draws examples of update 0 as a PNG, in the first process.

    All processes must call this, because they share the computation.

    Args:
        preview: of the task.
        compute: from `make_preview_step`.
        batch: the first batch, on the mesh.
        key: of the state; it is the same before and after an update.
        path: of the PNG.

    Returns:
        The figure's pixels; None in other processes than the first.
    """
    arrays = jax.device_get(compute(batch, key))
    if jax.process_index() > 0:
        return None
    preview.draw(arrays, path)
    with Image.open(path) as figure:
        return np.asarray(figure.convert("RGB"))
