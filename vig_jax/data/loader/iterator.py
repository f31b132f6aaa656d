"""Iterators over batches that threads or worker processes make ahead of time.

Worker processes are spawned, so a script that uses them needs `if __name__ == "__main__":`.
"""

import logging
import math
import traceback
import weakref
from collections.abc import Iterator

from vig_jax.data.loader import shared_memory
from vig_jax.data.loader.protocol import Batch, Batches, ClosableIterator
from vig_jax.data.loader.watch import Watch
from vig_jax.data.loader.workers import cpu_count
from vig_jax.errors import DataSetError, DataWorkerError
from vig_jax.text import preview_names

logger = logging.getLogger(__name__)


class BatchIterator(Iterator[Batch]):
    """Iterator over batches that owns threads or processes until it is closed.

    Args:
        batches: of Grain, at least `count`.
        count: the number of batches to return.
        watch: of the workers or threads; closed with the iterator.
        shared: the batches come through shared memory.
        total_bytes: at most, of all batches.

    Attributes:
        total_bytes: as above.
    """

    def __init__(
        self,
        batches: ClosableIterator,
        count: int,
        watch: Watch,
        *,
        shared: bool,
        total_bytes: int,
    ):
        self.total_bytes = total_bytes
        self._open = [batches]  # empty once closed
        self._left = count
        self._watch = watch
        self._close = weakref.finalize(self, _close, self._open, watch, shared)  # also at exit

    def __next__(self) -> Batch:
        if not self._open:
            raise ValueError("this iterator over batches is closed")
        if not self._left:
            raise StopIteration
        try:
            with self._watch.awaiting():
                batch = next(self._open[0])
        except Exception as error:
            lost = _lost_worker(error, self._watch)
            self.close()
            # Grain's frames refer to the error and the error to the frames, and one of them to the
            # newest batch, whose shared memory would stay until Python looks for such cycles.
            traceback.clear_frames(error.__traceback__)
            if lost is not None:
                raise lost from error
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


def _lost_worker(error: Exception, watch: Watch) -> DataWorkerError | None:
    """Translates Grain's error for a worker process that has ended; None for other errors."""
    if not isinstance(error, RuntimeError) or "terminated unexpectedly" not in str(error):
        return None
    if watch.stuck:
        return DataWorkerError(
            f"a data worker was ended: it had {watch.stuck[0]} in hand for longer than "
            "config.data.image_seconds allows. Remove the image, or raise the limit (0: none)"
        )
    if watch.silence:
        return DataWorkerError(
            f"the data workers were ended: {watch.silence}, which is longer than "
            "config.data.image_seconds allows. Is the disk that they read in order? Else raise "
            "the limit (0: none)"
        )
    cause = str(error).splitlines()[0].rstrip(".")
    in_hand = watch.in_hand_of_the_dead()
    hint = f"; it had {preview_names(in_hand)} in hand" if in_hand else ""
    return DataWorkerError(
        f"{cause}{hint}. Exit code -9 usually means that the machine ran out of memory: lower "
        "config.data.workers, config.data.prefetch or config.train.batch_size"
    )


def _close(batches: list[ClosableIterator], watch: Watch, shared: bool) -> None:
    watch.close()
    batches.pop().close()  # and drop it: Grain's iterators must not be deleted at the very end
    if shared:
        shared_memory.wait_until_released()


def iterate(
    batches: Batches,
    *,
    workers: int,
    prefetch: int,
    copies: int = 1,
    image_seconds: float = 0.0,
) -> BatchIterator:
    """Returns an iterator that makes batches in threads or worker processes, ahead of time.

    Args:
        batches: to iterate over, in order.
        workers: processes; 0: threads of this process.
        prefetch: batches kept ready per worker.
        copies: the number of such iterators that shared memory must have room for.
        image_seconds: limit for one example; 0: none.

    Raises:
        DataSetError: too little shared memory.
    """
    from vig_jax.data.loader import pipeline  # Grain takes long to import

    def name_of(index: int, group: int) -> str:
        del group
        return batches.name_of(index)

    total_bytes = len(batches) * batches.bytes_per_batch
    if workers == 0 or len(batches) == 0:
        watch = Watch(name_of, image_seconds, batches.owner)
        made = pipeline.in_threads(batches, prefetch)
        return BatchIterator(made, len(batches), watch, shared=False, total_bytes=total_bytes)
    workers = min(_worker_count(workers), len(batches))
    # Grain has two buffers per worker: in the process, and in a thread here.
    buffer = max(1, math.ceil(prefetch / 2))
    # A batch goes into each of them, and one more is being copied out.
    count = workers * (2 * buffer + 2) + 1
    _check_shared_memory(batches, workers, prefetch, count * copies)
    watch = Watch(name_of, image_seconds)
    watch.expect(workers)
    made = pipeline.in_processes(batches, workers, buffer, watch.folder)
    return BatchIterator(made, len(batches), watch, shared=True, total_bytes=total_bytes)


def _worker_count(requested: int) -> int:
    cpus = cpu_count()
    if requested > cpus:
        logger.info("config.data.workers=%d: using %d, one per CPU", requested, cpus)
    return min(requested, cpus)


def _check_shared_memory(batches: Batches, workers: int, prefetch: int, count: int) -> None:
    """Raises before a full /dev/shm kills the workers without a message."""
    shared_memory.remove_stale()
    needed = count * batches.bytes_per_batch
    free = shared_memory.free_bytes()
    if free is not None and needed > free:
        raise DataSetError(
            f"{workers} workers with {prefetch} batches of {batches.rows} examples each need "
            f"{needed / 2**20:.0f} MiB in {shared_memory.SHARED_MEMORY}, "
            f"but {free / 2**20:.0f} MiB are free ({shared_memory.describe()}). "
            "Give the container more (docker run --shm-size=8g), or lower config.data.workers or "
            "config.data.prefetch, or set "
            "config.data.workers=0"
        )
