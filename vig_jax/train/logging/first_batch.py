"""A picture of what the model sees: images of the first batch as they go in, with their targets."""

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Float, UInt8
from matplotlib.figure import Figure
from PIL import Image

from vig_jax.figures import save_figure
from vig_jax.sharding.mesh import batch_sharded, replicated
from vig_jax.tasks.protocol import Batch, Task

FIRST_BATCH_FILE = "first_batch.png"
_COLUMNS, _ROWS = 8, 5
_LEAST_TOLD = 0.05  # a class with a smaller share of the target goes unsaid


def model_inputs(
    task: Task, batch: Batch, key: jax.Array, mesh: jax.sharding.Mesh, *, accumulation_steps: int
) -> tuple[UInt8[np.ndarray, "n S S 3"], Float[np.ndarray, "n classes"]]:
    """Images and targets as update 0 gives them to the model, of up to 40 rows.

    All processes must call this: they share the computation.

    Args:
        task: of the run.
        batch: the first, placed on the mesh.
        key: of the state before the first update.
        mesh: of the run.
        accumulation_steps: parts of a batch. Draws are made per part, so the rows are of the first.

    Returns:
        Pixels and targets, spread evenly over the batch (or its part) and so over mixing groups.
    """
    part = len(batch["label"]) // accumulation_steps
    rows = np.unique(np.linspace(0, part - 1, min(part, _COLUMNS * _ROWS)).astype(int))

    def inputs(
        batch: Batch, key: jax.Array
    ) -> tuple[UInt8[Array, "n S S 3"], Float[Array, "n classes"]]:
        key = jax.random.fold_in(key, 0)  # the number of the update
        if accumulation_steps > 1:
            key = jax.random.fold_in(key, 0)  # and that of the part
        images, targets = task.training_inputs({k: x[:part] for k, x in batch.items()}, key)
        return task.pixels(images[rows]), targets[rows]

    everywhere = replicated(mesh)
    compute = jax.jit(
        inputs, in_shardings=(batch_sharded(mesh), everywhere), out_shardings=everywhere
    )
    pixels, targets = jax.device_get(compute(batch, key))
    return pixels, targets


def draw_first_batch(
    pixels: UInt8[np.ndarray, "n S S 3"],
    targets: Float[np.ndarray, "n classes"],
    class_names: Sequence[str],
    path: Path,
) -> UInt8[np.ndarray, "H W 3"]:
    """Writes a contact sheet as PNG.

    Args:
        pixels: from `model_inputs`.
        targets: with them.
        class_names: one per label; labels beyond them are told by number.
        path: of the file.

    Returns:
        The sheet, for TensorBoard.
    """
    columns = min(_COLUMNS, len(pixels))
    rows = -(-len(pixels) // columns)
    figure = Figure(figsize=(1.45 * columns + 0.2, 1.85 * rows + 0.5), layout="constrained")
    figure.suptitle(
        "First batch as the model sees it, with its targets",
        fontsize=10,
    )
    for place, (image, target) in enumerate(zip(pixels, targets, strict=True), start=1):
        axes = figure.add_subplot(rows, columns, place)
        axes.imshow(image, interpolation="nearest")
        axes.set_axis_off()
        axes.set_title(_caption(target, class_names), fontsize=7, parse_math=False)
    save_figure(figure, path)
    with Image.open(path) as sheet:
        return np.asarray(sheet.convert("RGB"))


def _caption(target: Float[np.ndarray, "classes"], class_names: Sequence[str]) -> str:
    """The one or two classes of a target with their shares, one a line."""
    lines = []
    for label in np.argsort(-target, kind="stable")[:2].tolist():
        if target[label] >= _LEAST_TOLD:
            name = class_names[label] if label < len(class_names) else f"class {label}"
            name = name if len(name) <= 16 else name[:15] + "…"
            lines.append(f"{name} {target[label]:.0%}")
    return "\n".join(lines)
