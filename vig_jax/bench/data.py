"""Times the stages of the host per image, and the loader."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from vig_jax.config import DataConfig
from vig_jax.data.dataset import Dataset
from vig_jax.data.inspection import spread
from vig_jax.data.loader.batches import train_batches
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.data.preprocess.decode import load
from vig_jax.data.preprocess.geometry import draw_view, image_size

_ROUNDS = 8


def host_stages(dataset: Dataset, data: DataConfig, images: int) -> dict[str, dict[str, float]]:
    """Times the stages of the training path in this process, interleaved.

    Args:
        dataset: the training split.
        data: crop and size.
        images: number of images, spread evenly over the data set, shuffled.

    Returns:
        For "read", "decode", "crop and resize" and "all": CPU milliseconds per image, in the best
        round ("best") and in the median round ("median").
    """
    preprocess = ClassificationPreprocess(data, train=True)  # compiles the kernel
    indices = np.random.default_rng(0).permutation(spread(len(dataset), images)).tolist()
    files = [dataset[index]["image"] for index in indices]
    decoded = [load(file, data) for file in files]

    def crop(image: Any, number: int) -> Any:
        return draw_view(image_size(image), data, np.random.default_rng(number)).image(image)

    stages: dict[str, Callable[[int], Any]] = {
        "read": lambda i: dataset[indices[i]],
        "decode": lambda i: load(files[i], data),
        "crop and resize": lambda i: crop(decoded[i], i),
        "all": lambda i: preprocess(dataset[indices[i]], np.random.default_rng(i)),
    }
    times: dict[str, list[float]] = {name: [] for name in stages}
    for _ in tqdm(range(_ROUNDS), "host", unit="round", disable=None, leave=False):
        for name, stage in stages.items():
            begun = time.process_time()
            for number in range(len(indices)):
                stage(number)
            times[name].append((time.process_time() - begun) / len(indices) * 1e3)
    return {
        name: {"best": min(some), "median": float(np.median(some))} for name, some in times.items()
    }


def loader_speed(dataset: Dataset, data: DataConfig, batch_size: int, seconds: float) -> float:
    """Returns images per second of wall time through the whole loader, after its first batches.

    Args:
        dataset: the training split.
        data: workers, prefetch, crop, size.
        batch_size: images.
        seconds: minimum duration.
    """
    with train_batches(
        dataset,
        ClassificationPreprocess(data, train=True),
        batch_size=batch_size,
        seed=0,
        workers=data.workers,
        prefetch=max(1, data.prefetch),
    ) as batches:
        for _ in range(2 * max(1, data.workers)):  # batches that were ready before the clock starts
            next(batches)
        begun, count = time.monotonic(), 0
        with tqdm(desc="loader", unit="img", disable=None, leave=False) as bar:
            while (elapsed := time.monotonic() - begun) < seconds:
                next(batches)
                count += batch_size
                bar.update(batch_size)
    return count / elapsed
