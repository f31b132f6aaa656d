"""Iterators over batches that threads or worker processes make ahead of time.

Grain starts the workers, keeps batches ready and moves them through shared memory. Worker processes
are spawned, so a script that uses them needs `if __name__ == "__main__":`.
"""

import dataclasses
import logging
import math
import sys
import traceback
import weakref
from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from vig_jax.data.loader import shared_memory
from vig_jax.data.loader.workers import cpu_count, isolate
from vig_jax.errors import DataSetError

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]


@runtime_checkable
class Batches(Protocol):
    """Batches with random access. They can be pickled."""

    @property
    def rows(self) -> int:
        """Examples per batch."""

    @property
    def bytes_per_batch(self) -> int:
        """Bytes."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Batch: ...


class BatchIterator(Iterator[Batch]):
    """Iterator over batches that owns threads or processes until it is closed.

    Args:
        batches: of Grain, at least `count`.
        count: the number of batches to return.
        shared: the batches come through shared memory.
    """

    def __init__(self, batches: grain.DatasetIterator, count: int, *, shared: bool):
        self._open = [batches]  # empty once closed
        self._left = count
        self._close = weakref.finalize(self, _close, self._open, shared)  # runs at exit, too

    def __next__(self) -> Batch:
        if not self._open:
            raise ValueError("this iterator over batches is closed")
        if not self._left:
            raise StopIteration
        try:
            batch = next(self._open[0])
        except Exception as error:
            self.close()
            # Grain's frames refer to the error and the error to the frames, and one of them to the
            # newest batch, whose shared memory would stay until Python looks for such cycles.
            traceback.clear_frames(error.__traceback__)
            raise
        self._left -= 1
        return batch

    def close(self) -> None:
        """Ends the workers. A second call does nothing."""
        self._close()

    def __enter__(self) -> "BatchIterator":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _close(batches: list[grain.DatasetIterator], shared: bool) -> None:
    batches.pop().close()  # and drop it: Grain's iterators must not be deleted at the very end
    if shared:
        shared_memory.wait_until_released()


def iterate(batches: Batches, *, workers: int, prefetch: int, copies: int = 1) -> BatchIterator:
    """Returns an iterator that makes batches in threads or worker processes, ahead of time.

    Args:
        batches: to iterate over, in order.
        workers: processes; 0: threads of this process.
        prefetch: batches kept ready per worker.
        copies: the number of such iterators that shared memory must have room for.

    Raises:
        DataSetError: too little shared memory.
    """
    # Grain's buffers count elements, and an element is a whole batch here.
    if workers == 0 or len(batches) == 0:
        source = grain.MapDataset.source(batches)
        ready = max(1, prefetch)
        options = grain.ReadOptions(min(ready, cpu_count()), ready)
        return BatchIterator(iter(source.to_iter_dataset(options)), len(batches), shared=False)
    workers = min(_worker_count(workers), len(batches))
    buffer = max(1, math.ceil(prefetch / 2))  # Grain has two: in the worker, and in a thread here
    # Per worker two buffers and a batch going into each; one more is being copied out.
    count = workers * (2 * buffer + 2) + 1
    _check_shared_memory(batches, workers, prefetch, count * copies)
    if not flags.FLAGS.is_parsed():  # Grain reads its flags, also in programs without absl.app
        flags.FLAGS.mark_as_parsed()
    source = grain.MapDataset.source(_Padded(batches, workers))
    per_process = (
        source.to_iter_dataset(grain.ReadOptions(0, 0))
        .mp_prefetch(grain.MultiprocessingOptions(workers, buffer), worker_init_fn=_start_worker)
        .map(_copy_out_of_shared_memory)
    )
    together = _StartedTogether(per_process)
    prefetching = grain.experimental.ThreadPrefetchIterDataset(together, prefetch_buffer_size=1)
    return BatchIterator(iter(prefetching), len(batches), shared=True)


@dataclasses.dataclass(frozen=True)
class _Padded:
    """The batches, followed by an empty one for each worker.

    At the end of the data, Grain's threads keep an exception whose frames keep the newest batch. An
    empty batch has no shared memory.
    """

    batches: Batches
    workers: int

    def __len__(self) -> int:
        return min(len(self.batches) + self.workers, sys.maxsize)

    def __getitem__(self, number: int) -> Batch:
        return self.batches[number] if number < len(self.batches) else {}


class _StartedTogether(grain.IterDataset[Batch]):
    """Starts all workers of its parent at once, when iteration begins.

    A prefetching thread asks for the state first. After that, Grain's workers start one by one,
    each when its first batch is requested, which takes seconds.
    """

    def __iter__(self) -> grain.DatasetIterator[Batch]:
        (per_process,) = self.parents
        batches = iter(per_process)
        batches.get_state()
        batches.start_prefetch()
        return batches


def _copy_out_of_shared_memory(batch: Batch) -> Batch:
    """Copies in Grain's thread: a batch that is kept must not keep the workers' memory."""
    return {name: np.array(array) for name, array in batch.items()}


def _worker_count(requested: int) -> int:
    cpus = cpu_count()
    if requested > cpus:
        logger.info("config.data.workers=%d: using %d, one per CPU", requested, cpus)
    return min(requested, cpus)


def _check_shared_memory(batches: Batches, workers: int, prefetch: int, count: int) -> None:
    """Raises before a full /dev/shm kills the workers without a message."""
    needed = count * batches.bytes_per_batch
    free = shared_memory.free_bytes()
    if free is not None and needed > free:
        raise DataSetError(
            f"{workers} workers with {prefetch} batches of {batches.rows} examples each need "
            f"{needed / 2**20:.0f} MiB in {shared_memory.SHARED_MEMORY}, "
            f"but {free / 2**20:.0f} MiB are free. Give the container more (docker run "
            "--shm-size=8g), or lower config.data.workers or config.data.prefetch, or set "
            "config.data.workers=0"
        )


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    isolate()
