"""Batches as a pure function of (seed, step, process), made by threads or worker processes.

The content of a batch depends on nothing else: not on the number of workers or processes, nor on
what was read before. To resume is to start at another step. The loader knows nothing of images: the
`Preprocess` says which arrays an example becomes. Grain starts the workers, keeps batches ready and
moves them through shared memory.

Worker processes are spawned, so a script that uses them needs `if __name__ == "__main__":`.
"""

import dataclasses
import functools
import logging
import math
import sys
import traceback
import weakref
from collections.abc import Iterator, Mapping

import grain
import numpy as np
from absl import flags

from vig_jax.data.dataset import Dataset
from vig_jax.data.loader import shared_memory
from vig_jax.data.loader.workers import cpu_count, isolate
from vig_jax.data.preprocess.protocol import Preprocess, Spec, bytes_per_example
from vig_jax.errors import ConfigError, DataSetError, UndecodableImageError

logger = logging.getLogger(__name__)

Batch = dict[str, np.ndarray]

# Streams of random numbers under one seed.
_SHUFFLE, _AUGMENT = 0, 1
_LONGEST_BAD_RUN = 100


def steps_per_epoch(dataset: Dataset, batch_size: int) -> int:
    """Returns the number of full global batches in one pass; the rest of the order is left out.

    Args:
        dataset: the training split.
        batch_size: global.

    Returns:
        At least 1.

    Raises:
        DataSetError: fewer examples than one batch needs.
    """
    if len(dataset) < batch_size:
        raise DataSetError(
            f"the training split has {len(dataset)} images, fewer than one batch of {batch_size}: "
            f"set config.train.batch_size to at most {len(dataset)}"
        )
    return len(dataset) // batch_size


def train_batches(
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> "BatchIterator":
    """Returns shuffled batches without end.

    Step k belongs to epoch k // steps_per_epoch. No example comes twice in an epoch, and every
    epoch has another order. Process p of P gets rows p*b to (p+1)*b of each global batch.

    Args:
        dataset: the training split.
        preprocess: makes the arrays of one example.
        batch_size: global, divisible by `process_count`.
        seed: of the order and of the preprocessing, 0 to 2**63 - 1.
        start_step: the first batch is that of this step.
        process_index: this process.
        process_count: number of processes that share the global batch.
        workers: processes that make batches; 0: threads of this process.
        prefetch: batches kept ready per worker.

    Returns:
        Iterator of dict(the arrays of `preprocess.spec`, stacked [b, ...]; index int64 [b], of the
        example in the data set; bad int64 [b], index of the undecodable example that `index`
        replaces, or -1). Close it, or use it in a `with` statement.

    Raises:
        DataSetError: fewer examples than a batch, or too little shared memory.
        ConfigError: a setting is out of range.
    """
    _check(batch_size, process_index, process_count, workers, prefetch)
    if not 0 <= seed < 2**63 or start_step < 0:
        raise ConfigError(f"seed {seed} and step {start_step} must not be negative")
    steps_per_epoch(dataset, batch_size)
    share = _Share(dataset, preprocess, batch_size, process_index, process_count)
    # Evaluation workers run beside those of training: fail now rather than after an epoch.
    return _iterate(_TrainBatches(share, seed, start_step), workers, prefetch, room_for=2)


def eval_batches(
    dataset: Dataset,
    preprocess: Preprocess,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
) -> "BatchIterator":
    """Returns one pass in order, without random numbers.

    Every process gets the same number of batches.

    Args:
        dataset: the evaluation split.
        preprocess: makes the arrays of one example; it gets no generator.
        batch_size: global, divisible by `process_count`.
        process_index: this process.
        process_count: number of processes that share the global batch.
        workers: processes that make batches; 0: threads of this process.
        prefetch: batches kept ready per worker.

    Returns:
        Iterator of dict(the arrays of `preprocess.spec`, stacked [b, ...]; index int64 [b]; bad
        int64 [b]; weight float32 [b]). Weight is 0 for rows that fill up the last batch (index -1)
        and for undecodable examples (`bad` is their index, else -1), otherwise 1. Close it, or use
        it in a `with` statement.

    Raises:
        DataSetError: too little shared memory.
        ConfigError: a setting is out of range.
    """
    _check(batch_size, process_index, process_count, workers, prefetch)
    share = _Share(dataset, preprocess, batch_size, process_index, process_count)
    return _iterate(_EvalBatches(share), workers, prefetch, room_for=1)


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


@dataclasses.dataclass(frozen=True)
class _Share:
    """One process's rows of the global batches of a data set."""

    dataset: Dataset
    preprocess: Preprocess
    batch_size: int
    process_index: int
    process_count: int

    @property
    def rows(self) -> int:
        return self.batch_size // self.process_count

    @property
    def first(self) -> int:
        return self.process_index * self.rows

    def load(self, index: int, rng: np.random.Generator | None) -> Mapping[str, np.ndarray]:
        """Reads and preprocesses an example; raises UndecodableImageError."""
        try:
            example = self.dataset[index]
        except OSError as error:
            raise UndecodableImageError(f"{type(error).__name__}: {error}") from error
        return self.preprocess(example, rng)

    def empty_batch(self) -> Batch:
        batch = {
            name: np.zeros((self.rows, *shape), dtype)
            for name, (shape, dtype) in self.preprocess.spec.items()
        }
        for name in ("index", "bad"):
            batch[name] = np.full(self.rows, -1, np.int64)
        return batch


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
    share: _Share
    seed: int
    start_step: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Batch:
        share = self.share
        step = self.start_step + number
        length = len(share.dataset)
        epoch, step_in_epoch = divmod(step, steps_per_epoch(share.dataset, share.batch_size))
        order = _epoch_order(self.seed, epoch, length)
        start = step_in_epoch * share.batch_size + share.first
        batch = share.empty_batch()
        for row, drawn in enumerate(order[start : start + share.rows].tolist()):
            position = step * share.batch_size + share.first + row
            index, example = self._next_decodable(drawn, position)
            for name, array in example.items():
                batch[name][row] = array
            batch["index"][row] = index
            if index != drawn:
                batch["bad"][row] = drawn
        return batch

    def _next_decodable(self, drawn: int, position: int) -> tuple[int, Mapping[str, np.ndarray]]:
        """Returns the first of `drawn`, drawn + 1, ... (modulo the length) that can be decoded."""
        length = len(self.share.dataset)
        attempts = min(_LONGEST_BAD_RUN, length)
        for index in range(drawn, drawn + attempts):
            rng = _generator(self.seed, _AUGMENT, position)
            try:
                return index % length, self.share.load(index % length, rng)
            except UndecodableImageError as error:
                reason = error
        raise DataSetError(
            f"{attempts} images in a row cannot be decoded, from "
            f"{self.share.dataset.name_of(drawn)} on ({reason}): are these images, and is the disk "
            "still there?"
        )


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
    share: _Share

    def __len__(self) -> int:
        return math.ceil(len(self.share.dataset) / self.share.batch_size)

    def __getitem__(self, number: int) -> Batch:
        share = self.share
        start = number * share.batch_size + share.first
        batch = share.empty_batch()
        batch["weight"] = np.zeros(share.rows, np.float32)
        for row, index in enumerate(range(start, min(start + share.rows, len(share.dataset)))):
            batch["index"][row] = index
            try:
                example = share.load(index, None)
            except UndecodableImageError:
                batch["bad"][row] = index
                continue
            for name, array in example.items():
                batch[name][row] = array
            batch["weight"][row] = 1
        return batch


def _generator(seed: int, stream: int, number: int) -> np.random.Generator:
    """Returns an independent generator per (seed, stream, number), separated by 2**128 draws."""
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, number, stream]))


@functools.lru_cache(maxsize=2)  # prefetching crosses from one epoch into the next
def _epoch_order(seed: int, epoch: int, length: int) -> np.ndarray:
    return _generator(seed, _SHUFFLE, epoch).permutation(length)


@dataclasses.dataclass(frozen=True)
class _Padded:
    """The batches, followed by an empty one for each worker.

    At the end of the data, Grain's threads keep an exception whose frames keep the newest batch. An
    empty batch has no shared memory.
    """

    batches: _TrainBatches | _EvalBatches
    workers: int

    def __len__(self) -> int:
        return min(len(self.batches) + self.workers, sys.maxsize)

    def __getitem__(self, number: int) -> Batch:
        return self.batches[number] if number < len(self.batches) else {}


def _iterate(
    batches: _TrainBatches | _EvalBatches, workers: int, prefetch: int, room_for: int
) -> BatchIterator:
    # Grain's buffers count elements, and an element is a whole batch here.
    if workers == 0:
        source = grain.MapDataset.source(batches)
        ready = max(1, prefetch)
        options = grain.ReadOptions(min(ready, cpu_count()), ready)
        return BatchIterator(iter(source.to_iter_dataset(options)), len(batches), shared=False)
    workers = min(_worker_count(workers), len(batches))
    buffer = max(1, math.ceil(prefetch / 2))  # Grain has two: in the worker, and in a thread here
    # Per worker two buffers and a batch going into each; one more is being copied out.
    count = workers * (2 * buffer + 2) + 1
    _check_shared_memory(batches.share, workers, prefetch, count * room_for)
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


def _check_shared_memory(share: _Share, workers: int, prefetch: int, count: int) -> None:
    """Raises before a full /dev/shm kills the workers without a message."""
    needed = count * _bytes_per_batch(share.preprocess.spec, share.rows)
    free = shared_memory.free_bytes()
    if free is not None and needed > free:
        raise DataSetError(
            f"{workers} workers with {prefetch} batches of {share.rows} examples each need "
            f"{needed / 2**20:.0f} MiB in {shared_memory.SHARED_MEMORY}, "
            f"but {free / 2**20:.0f} MiB are free. Give the container more (docker run "
            "--shm-size=8g), or lower config.data.workers or config.data.prefetch, or set "
            "config.data.workers=0"
        )


def _bytes_per_batch(spec: Spec, rows: int) -> int:
    return rows * (bytes_per_example(spec) + 20)  # index, bad, weight


def _start_worker(worker_index: int, worker_count: int) -> None:
    del worker_index, worker_count
    isolate()


def _check(
    batch_size: int, process_index: int, process_count: int, workers: int, prefetch: int
) -> None:
    if batch_size < 1 or batch_size % process_count:
        raise ConfigError(
            f"config.train.batch_size={batch_size} must be a multiple of the "
            f"{process_count} processes"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} does not exist")
    for name, value in (("workers", workers), ("prefetch", prefetch)):
        if value < 0:
            raise ConfigError(f"config.data.{name}={value} must be at least 0")
