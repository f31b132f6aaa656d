"""Batches as a pure function of (seed, step, process), made by threads or worker processes.

What a batch holds depends on nothing else: not on how many workers or processes there are, nor on
what was read before. Resuming is starting at another step, in no time. Grain starts the workers,
keeps batches ready and moves them through shared memory; which image goes where is decided here.

Worker processes are spawned, so a script that uses them needs `if __name__ == "__main__":`.
"""

import dataclasses
import functools
import gc
import logging
import os
import shutil
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np
from absl import flags
from grain.multiprocessing import SharedMemoryArray
from PIL import Image

from vig_jax.config import DataConfig
from vig_jax.data.datasets.registry import Source
from vig_jax.data.loader.workers import cpu_count, isolate
from vig_jax.data.preprocess import resize, transforms
from vig_jax.errors import ConfigError, DataSetError, UndecodableImageError

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

# Streams of random numbers under one seed.
_SHUFFLE, _AUGMENT = 0, 1
_LONGEST_BAD_RUN = 100
_SHARED_MEMORY = "/dev/shm"


def steps_per_epoch(source: Source, batch_size: int) -> int:
    """Full global batches in one pass; the rest of an epoch's permutation is left out.

    Args:
        source: the training split.
        batch_size: global.

    Returns:
        At least 1.

    Raises:
        DataSetError: fewer examples than one batch needs.
    """
    if len(source) < batch_size:
        raise DataSetError(
            f"the training split has {len(source)} images, fewer than one batch of {batch_size}: "
            f"set config.train.batch_size to at most {len(source)}"
        )
    return len(source) // batch_size


def train_batches(
    source: Source,
    data: DataConfig,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchIterator":
    """Shuffled, augmented batches without end.

    Step k belongs to epoch k // steps_per_epoch; in an epoch no image comes twice, and every epoch
    has its own order. Process p of P gets rows p*b to (p+1)*b of each global batch.

    Args:
        source: the training split.
        data: crop, flip, workers, prefetch.
        batch_size: global, divisible by `process_count`.
        seed: of the order and of the augmentation, 0 to 2**63 - 1.
        start_step: the first batch is that of this step.
        process_index: this process.
        process_count: how many processes share the global batch.

    Returns:
        Iterator of dict(image uint8 [b, S, S, 3]; label int32 [b]; index int64 [b], of the image in
        the source; bad int64 [b], index of the undecodable image that `index` replaces, or -1).
        Close it, or use it in a `with` statement.

    Raises:
        DataSetError: fewer images than a batch, or too little shared memory.
        ConfigError: a setting out of range.
    """
    _check(data, batch_size, process_index, process_count)
    if not 0 <= seed < 2**63 or start_step < 0:
        raise ConfigError(f"seed {seed} and step {start_step} must not be negative")
    steps_per_epoch(source, batch_size)
    batches = _TrainBatches(
        source, data, batch_size, process_index, process_count, seed, start_step
    )
    return _iterate(batches)


def eval_batches(
    source: Source,
    data: DataConfig,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> "BatchIterator":
    """One pass in order, without augmentation; every process gets equally many full batches.

    Args:
        source: the evaluation split.
        data: image size, crop_pct, workers, prefetch.
        batch_size: global, divisible by `process_count`.
        process_index: this process.
        process_count: how many processes share the global batch.

    Returns:
        Iterator of dict(image uint8 [b, S, S, 3], label int32 [b], weight float32 [b], index
        int64 [b], bad int64 [b]). Weight is 0 for rows that fill up the last batch (index -1) and
        for undecodable images (`bad` is their index, else -1); otherwise 1.
        Close it, or use it in a `with` statement.

    Raises:
        DataSetError: too little shared memory.
        ConfigError: a setting out of range.
    """
    _check(data, batch_size, process_index, process_count)
    return _iterate(_EvalBatches(source, data, batch_size, process_index, process_count))


class BatchIterator(Iterator[Batch]):
    """Iterator over batches that owns threads or processes until it is closed."""

    def __init__(self, batches: grain.DatasetIterator):
        self._open = [batches]  # until closed
        self._close = weakref.finalize(self, _close, self._open)  # runs at exit, too

    def __next__(self) -> Batch:
        if not self._open:
            raise ValueError("this iterator over batches is closed")
        return next(self._open[0])

    def close(self) -> None:
        """Ends the workers; again is harmless."""
        self._close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(batches: list[grain.DatasetIterator]) -> None:
    batches.pop().close()  # and let go: Grain's iterators mind being deleted at the very end
    # Grain frees shared memory in a thread of its own; leaving before that is done makes Python's
    # resource tracker complain of leaks. One thread serves in order, so wait for an empty task.
    pool = getattr(SharedMemoryArray, "_del_thread_pool", None)
    if pool is not None:
        gc.collect()  # a finished iterator's last batch is held by a circle of references
        pool.apply(int)


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    source: Source
    data: DataConfig
    batch_size: int
    process_index: int
    process_count: int
    seed: int
    start_step: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Batch:
        step = self.start_step + number
        epoch, step_in_epoch = divmod(step, steps_per_epoch(self.source, self.batch_size))
        rows = self.batch_size // self.process_count
        first = self.process_index * rows
        order = _epoch_order(self.seed, epoch, len(self.source))
        start = step_in_epoch * self.batch_size + first
        batch = _empty_batch(rows, self.data.image_size)
        for row, drawn in enumerate(order[start : start + rows].tolist()):
            index, image, label = _next_decodable(self.source, drawn, self.data)
            position = step * self.batch_size + first + row
            rng = _generator(self.seed, _AUGMENT, position)
            batch["image"][row] = transforms.train_image(image, self.data, rng)
            batch["label"][row] = label
            batch["index"][row] = index
            if index != drawn:
                batch["bad"][row] = drawn
        return batch


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
    source: Source
    data: DataConfig
    batch_size: int
    process_index: int
    process_count: int

    def __len__(self) -> int:
        return -(-len(self.source) // self.batch_size)

    def __getitem__(self, number: int) -> Batch:
        rows = self.batch_size // self.process_count
        start = number * self.batch_size + self.process_index * rows
        batch = _empty_batch(rows, self.data.image_size)
        batch["weight"] = np.zeros(rows, np.float32)
        for row, index in enumerate(range(start, min(start + rows, len(self.source)))):
            batch["index"][row] = index
            try:
                image, batch["label"][row] = _read(self.source, index, self.data)
            except UndecodableImageError:
                batch["bad"][row] = index
                continue
            batch["image"][row] = transforms.eval_image(image, self.data)
            batch["weight"][row] = 1
        return batch


def _empty_batch(rows: int, side: int) -> Batch:
    return {
        "image": np.zeros((rows, side, side, 3), np.uint8),
        "label": np.zeros(rows, np.int32),
        "index": np.full(rows, -1, np.int64),
        "bad": np.full(rows, -1, np.int64),
    }


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    """An independent generator for every (seed, stream, number): they start 2**128 draws apart."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, number, stream]))


@functools.lru_cache(maxsize=2)  # the prefetching crosses from one epoch into the next
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return _generator(seed, _SHUFFLE, epoch).permutation(length)


def _read(source: Source, index: int, data: DataConfig) -> tuple[Image.Image | np.ndarray, int]:
    try:
        example = source[index]
    except OSError as error:
        raise UndecodableImageError(f"{type(error).__name__}: {error}") from error
    return transforms.load(example["image"], data), example["label"]


def _next_decodable(
    source: Source, drawn: int, data: DataConfig
) -> tuple[int, Image.Image | np.ndarray, int]:
    """The first of `drawn`, drawn + 1, ... (going round) that can be read: index, image, label."""
    attempts = min(_LONGEST_BAD_RUN, len(source))
    for index in range(drawn, drawn + attempts):
        try:
            return index % len(source), *_read(source, index % len(source), data)
        except UndecodableImageError as error:
            reason = error
    raise DataSetError(
        f"{attempts} images in a row cannot be decoded, from {source.name_of(drawn)} on "
        f"({reason}): are these images, and is the disk still there?"
    )


def _iterate(batches: _TrainBatches | _EvalBatches) -> BatchIterator:
    data = batches.data
    dataset = grain.MapDataset.source(batches)
    # Grain's buffers count elements, and an element is a whole batch here.
    if data.workers == 0:
        ready = max(1, data.prefetch)
        threads = min(ready, cpu_count())
        return BatchIterator(iter(dataset.to_iter_dataset(grain.ReadOptions(threads, ready))))
    workers = min(_worker_count(data.workers), len(batches))
    buffer = max(1, -(-data.prefetch // 2))  # Grain keeps two: in the worker, and in a thread here
    _check_shared_memory(batches, workers, buffer)
    if not flags.FLAGS.is_parsed():  # Grain reads its flags, also in programs without absl.app
        flags.FLAGS.mark_as_parsed()
    per_process = (
        dataset.to_iter_dataset(grain.ReadOptions(0, 0))
        .mp_prefetch(grain.MultiprocessingOptions(workers, buffer), worker_init_fn=_start_worker)
        .map(_out_of_shared_memory)
    )
    together = _StartedTogether(per_process)
    return BatchIterator(
        iter(grain.experimental.ThreadPrefetchIterDataset(together, prefetch_buffer_size=1))
    )


class _StartedTogether(grain.IterDataset[Batch]):
    """Starts the workers of what it iterates over all at once, when iteration begins.

    A prefetching thread asks for the state first, and Grain's workers, once asked for theirs,
    start one after the other: each when its first batch is wanted, for seconds.
    """

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        (per_process,) = self.parents
        batches = iter(per_process)
        batches.get_state()
        batches.start_prefetch()
        return batches


def _out_of_shared_memory(batch: Batch) -> Batch:
    """Copies, in Grain's thread: whoever keeps a batch shall not keep the workers' memory."""
    return {name: np.array(array) for name, array in batch.items()}


def _worker_count(wanted: int) -> int:
    cpus = cpu_count()
    if wanted > cpus:
        logger.info("config.data.workers=%d: using %d, one per CPU", wanted, cpus)
    return min(wanted, cpus)


def _check_shared_memory(batches: _TrainBatches | _EvalBatches, workers: int, buffer: int) -> None:
    """A full /dev/shm would kill the workers without a word; say it beforehand."""
    if not os.path.isdir(_SHARED_MEMORY):  # noqa: PTH112
        return
    rows = batches.batch_size // batches.process_count
    # Per worker two buffers and a batch going into each; one more is being copied out.
    count = workers * (2 * buffer + 2) + 1
    if isinstance(batches, _TrainBatches):
        count *= 2  # evaluation will come to stand beside it: better told now than after an epoch
    needed = count * rows * batches.data.image_size**2 * 3
    free = shutil.disk_usage(_SHARED_MEMORY).free
    if needed > free:
        raise DataSetError(
            f"{workers} workers with {batches.data.prefetch} batches of {rows} images each need "
            f"{needed / 2**20:.0f} MiB in {_SHARED_MEMORY}, but {free / 2**20:.0f} MiB are free. "
            "Give the container more (docker run --shm-size=8g), or lower config.data.workers or "
            "config.data.prefetch, or set config.data.workers=0"
        )


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    isolate()


def _check(data: DataConfig, batch_size: int, process_index: int, process_count: int) -> None:
    """Raises ConfigError or DataSetError for settings that no batch can be made with."""
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"config.train.batch_size={batch_size} must be a multiple of the "
            f"{process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} does not exist")
    requirements: dict[str, tuple[bool, Any]] = {
        "image_size": (data.image_size >= 1, "at least 1"),
        "crop_scale": (0 < data.crop_scale[0] <= data.crop_scale[1] <= 1, "0 < low <= high <= 1"),
        "crop_ratio": (0 < data.crop_ratio[0] <= data.crop_ratio[1], "0 < low <= high"),
        "crop_padding": (data.crop_padding >= 0, "at least 0"),
        "hflip": (0 <= data.hflip <= 1, "a probability"),
        "crop_pct": (0 < data.crop_pct <= 1, "above 0 and at most 1"),
        "workers": (data.workers >= 0, "at least 0"),
        "prefetch": (data.prefetch >= 0, "at least 0"),
    }
    for name, (holds, wanted) in requirements.items():
        if not holds:
            raise ConfigError(f"config.data.{name}={getattr(data, name)} must be {wanted}")
    # Here, before workers are started: they find the compiled kernel in the cache.
    if data.resize != "pillow" and (reason := resize.why_not()) and data.resize == "numba":
        raise DataSetError(f"config.data.resize=numba, but {reason}; or set it to auto")
