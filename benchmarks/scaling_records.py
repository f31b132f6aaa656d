"""Training from JPEG files, with the program that `benchmarks.scaling` has compiled."""

import dataclasses
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.scaling_cases import Inputs, Measured, Work, agreed, row_of
from vig_jax.config import DataConfig
from vig_jax.data import open_dataset, train_batches
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.sharding.mesh import prefetch_to_device

_DISTINCT = 256  # images; the others are links to them
_SIZE = 500, 375  # width and height, pixels, as in ImageNet
_CLASSES = 4
_WARM = 4  # steps


def measure_records(work: Work, inputs: Inputs, *, seconds: float) -> Measured:
    """Trains from JPEG files: workers decode, crop, resize and flip, and batches are prefetched.

    Args:
        work: compiled.
        inputs: makes the state.
        seconds: about, after the first steps.
    """
    program, spec = inputs.program(work), work.parts.task.batch_spec if work.parts else {}
    batch_size = work.case.batch_size(work.mesh.size)
    workers = max(1, ((os.cpu_count() or 1) - 2) // jax.process_count())
    with tempfile.TemporaryDirectory() as folder:
        write_images(Path(folder), 2 * batch_size)
        data = dataclasses.replace(
            work.config.data, source="image_folder", path=folder, crop="random_resized"
        )
        milliseconds, outputs = _train(work, program.state, spec, data, workers, seconds)
    row = row_of(work, program, milliseconds=milliseconds, waited=None, timelines=[])
    return Measured(row | {"workers": workers}, outputs, [])


def _train(
    work: Work, state: Any, spec: Any, data: DataConfig, workers: int, seconds: float
) -> tuple[float, dict[str, np.ndarray]]:
    """Returns the milliseconds of a step, and the last loss and gradient norm."""
    with train_batches(
        open_dataset(data, "train"),
        ClassificationPreprocess(data, train=True),
        batch_size=work.case.batch_size(work.mesh.size),
        seed=0,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        workers=workers,
        prefetch=2,
    ) as batches:
        steps, begun, last = 0, 0.0, 3 * _WARM
        metrics: Any = None
        for _, batch in prefetch_to_device(batches, work.mesh, list(spec)):
            jax.block_until_ready(metrics)  # of the step before
            if steps == _WARM:
                begun = time.perf_counter()
            if steps == 3 * _WARM:
                so_far = time.perf_counter() - begun
                last = agreed(max(steps, _WARM + round(seconds / so_far * 2 * _WARM)))
            if steps == last:
                break
            state, metrics = work.compiled(state, batch)
            steps += 1
        elapsed = time.perf_counter() - begun
    found = {name: np.asarray(metrics[name], np.float32) for name in ("loss", "grad_norm")}
    return 1e3 * elapsed / (steps - _WARM), found


def write_images(folder: Path, count: int) -> None:
    """Writes a folder of JPEG files of smooth random images, `folder/train/<class>/<n>.jpg`.

    Args:
        folder: for them.
        count: number of files; files beyond the first 256 are links.
    """
    from PIL import Image

    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        file = folder / "train" / f"class{number % _CLASSES}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        if number < _DISTINCT:
            small = rng.integers(0, 256, (_SIZE[1] // 8, _SIZE[0] // 8, 3), np.uint8)
            image = Image.fromarray(small).resize(_SIZE, Image.Resampling.BICUBIC)
            image.save(file, quality=90)
            files.append(file)
        else:
            os.link(files[number % _DISTINCT], file)
