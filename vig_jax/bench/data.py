"""How fast one core makes images ready for the device, and how fast the loader is."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from vig_jax.config import DataConfig
from vig_jax.data.inspection import spread
from vig_jax.data.loader.batches import train_batches
from vig_jax.data.preprocess import resize, transforms
from vig_jax.data.source import Source

_ROUNDS = 8


def host_stages(source: Source, data: DataConfig, images: int) -> dict[str, dict[str, float]]:
    """Times the stages of the training path in this process, taking turns.

    Args:
        source: the training split.
        data: crop and size.
        images: how many, spread over the source, shuffled.

    Returns:
        For "read", "decode", "crop and resize" and "all": CPU milliseconds per image, of the best
        round ("best") and of the middle one ("median").
    """
    if data.resize != "pillow":
        resize.why_not()  # compiles, now
    indices = np.random.default_rng(0).permutation(spread(len(source), images)).tolist()
    files = [source[index]["image"] for index in indices]
    decoded = [transforms.load(file, data) for file in files]

    def crop(image: Any, number: int) -> Any:
        return transforms.train_image(image, data, np.random.default_rng(number))

    stages: dict[str, Callable[[int], Any]] = {
        "read": lambda i: source[indices[i]],
        "decode": lambda i: transforms.load(files[i], data),
        "crop and resize": lambda i: crop(decoded[i], i),
        "all": lambda i: crop(transforms.load(source[indices[i]]["image"], data), i),
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


def loader_speed(source: Source, data: DataConfig, batch_size: int, seconds: float) -> float:
    """Images per second of wall time through the whole loader, after its first batch.

    Args:
        source: the training split.
        data: workers, prefetch, crop, size.
        batch_size: images.
        seconds: for at least so long.
    """
    data = dataclasses.replace(data, prefetch=max(1, data.prefetch))
    with train_batches(source, data, batch_size=batch_size, seed=0) as batches:
        for _ in range(2 * max(1, data.workers)):  # what was ready before the clock started
            next(batches)
        begun, count = time.monotonic(), 0
        with tqdm(desc="loader", unit="img", disable=None, leave=False) as bar:
            while (elapsed := time.monotonic() - begun) < seconds:
                next(batches)
                count += batch_size
                bar.update(batch_size)
    return count / elapsed
