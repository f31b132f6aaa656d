"""Threads and worker processes of Grain.

Grain starts the workers, keeps batches ready and moves them through shared memory. Its buffers
count elements, and an element is a whole batch here.
"""

import dataclasses
import functools
import sys

import grain
import numpy as np
from absl import flags

from vig_jax.data.loader import shared_memory, watch
from vig_jax.data.loader.protocol import Batch, Batches
from vig_jax.data.loader.workers import cpu_count, isolate


def in_threads(batches: Batches, prefetch: int) -> grain.DatasetIterator[Batch]:
    """Returns an iterator whose batches are made by threads of this process."""
    ready = max(1, prefetch)
    options = grain.ReadOptions(min(ready, cpu_count()), ready)
    return iter(grain.MapDataset.source(batches).to_iter_dataset(options))


def in_processes(
    batches: Batches, workers: int, buffer: int, watch_folder: str
) -> grain.DatasetIterator[Batch]:
    """Returns an iterator whose batches are made by worker processes.

    Args:
        batches: to iterate over. Empty ones follow at the end.
        workers: processes, at least 1.
        buffer: batches kept ready in each worker, and in a thread for each worker.
        watch_folder: where workers note the example in hand.
    """
    if not flags.FLAGS.is_parsed():  # Grain reads its flags, also in programs without absl.app
        flags.FLAGS.mark_as_parsed()
    start = functools.partial(_start_worker, watch_folder, shared_memory.own_prefix())
    per_process = (
        grain.MapDataset.source(_Padded(batches, workers))
        .to_iter_dataset(grain.ReadOptions(0, 0))
        .mp_prefetch(grain.MultiprocessingOptions(workers, buffer), worker_init_fn=start)
        .map(_copy_out_of_shared_memory)
    )
    together = _StartedTogether(per_process)
    return iter(grain.experimental.ThreadPrefetchIterDataset(together, prefetch_buffer_size=1))


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


def _start_worker(
    watch_folder: str, prefix: str | None, worker_index: int, worker_count: int
) -> None:
    del worker_index, worker_count
    isolate(functools.partial(watch.discard, watch_folder))
    shared_memory.use_prefix(prefix)
    watch.join(watch_folder)
