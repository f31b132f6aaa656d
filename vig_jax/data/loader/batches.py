"""Batches as a pure function of (seed, step, process).

The content of a batch depends on nothing else: not on the number of workers or processes, nor on
what was read before. To resume is to start at another step. The loader knows nothing of images: the
`Preprocess` says which arrays an example becomes.
"""

import dataclasses
import sys
from collections.abc import Hashable, Mapping

import numpy as np

from vig_jax.data.dataset import Dataset
from vig_jax.data.loader.iterator import BatchIterator, iterate
from vig_jax.data.loader.orders import BucketedOrder, Order, enlarged, make_order, sizes_of
from vig_jax.data.loader.packed import PackedEvalBatches, PackedTrainBatches, eval_rows
from vig_jax.data.loader.protocol import Batch, Batches
from vig_jax.data.loader.share import Share, SharedBatches, empty_batch, note
from vig_jax.data.preprocess.protocol import (
    BucketedPreprocess,
    DrawnBuckets,
    PackedPreprocess,
    Preprocess,
    Spec,
    examples_per_row,
)
from vig_jax.errors import ConfigError, UndecodableImageError


def train_batches(
    dataset: Dataset,
    preprocess: Preprocess | DrawnBuckets | PackedPreprocess,
    *,
    batch_size: int,
    seed: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    image_seconds: float = 0.0,
) -> BatchIterator:
    """Returns shuffled batches without end.

    Step k belongs to epoch k // steps_per_epoch. No example comes twice in an epoch, and every
    epoch has another order. Process p of P gets rows p*b to (p+1)*b of each global batch. With
    `DrawnBuckets` each batch has the shapes of one bucket. With a `PackedPreprocess` a row of the
    arrays holds several examples, and the processes share the rows.

    Args:
        dataset: the training split; for `DrawnBuckets` a `SizedDataset`.
        preprocess: makes the arrays of one example.
        batch_size: global, divisible by `process_count`.
        seed: of the order and of the preprocessing, 0 to 2**63 - 1.
        start_step: the first batch is that of this step.
        process_index: this process.
        process_count: number of processes that share the global batch.
        workers: processes that make batches; 0: threads of this process.
        prefetch: batches kept ready per worker.
        image_seconds: a worker that takes longer for one example is ended, which is an error that
            names it; a thread's example is only logged. 0: no limit.

    Returns:
        Iterator of dict(the arrays of `preprocess.spec`, stacked [b, ...]; index int64 [b], of the
        example in the data set; bad int64 [b], index of the undecodable example that `index`
        replaces, or -1, or -2 - `index` for an example that is damaged but used). Close it, or use
        it in a `with` statement.

    Raises:
        DataSetError: fewer examples than a batch, or too little shared memory.
        ConfigError: a setting is out of range.
    """
    _check_share(batch_size, process_index, process_count, examples_per_row(preprocess))
    _check_workers(workers, prefetch)
    if not 0 <= seed < 2**63 or start_step < 0:
        raise ConfigError(f"seed {seed} and step {start_step} must not be negative")
    order = make_order(dataset, preprocess, batch_size, seed)
    share = Share(dataset, preprocess, batch_size, process_index, process_count)
    batches: Batches = _TrainBatches(share, order, start_step)
    if isinstance(preprocess, PackedPreprocess):
        batches = PackedTrainBatches(share, preprocess, order, start_step)
    # Two copies: evaluation workers run beside those of training, and too little shared memory
    # fails now rather than after an epoch.
    return iterate(
        batches, workers=workers, prefetch=prefetch, copies=2, image_seconds=image_seconds
    )


def eval_batches(
    dataset: Dataset,
    preprocess: Preprocess | BucketedPreprocess | PackedPreprocess,
    *,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 0,
    prefetch: int = 2,
    image_seconds: float = 0.0,
) -> BatchIterator:
    """Returns one pass in order, without random numbers.

    Every process gets the same number of batches. With a `BucketedPreprocess` each batch holds
    images of one bucket, and the pass is in order within each bucket. With a `PackedPreprocess` a
    row of the arrays holds several examples.

    Args:
        dataset: the evaluation split; for a `BucketedPreprocess` a `SizedDataset`.
        preprocess: makes the arrays of one example; it gets no generator.
        batch_size: global, divisible by `process_count`.
        process_index: this process.
        process_count: number of processes that share the global batch.
        workers: processes that make batches; 0: threads of this process.
        prefetch: batches kept ready per worker.
        image_seconds: a worker that takes longer for one example is ended, which is an error that
            names it; a thread's example is only logged. 0: no limit.

    Returns:
        Iterator of dict(the arrays of the preprocess, stacked [b, ...]; index int64 [b]; bad
        int64 [b]; weight float32 [b]). Weight is 0 for rows that fill up a last batch (index -1)
        and for undecodable examples (`bad` is their index), otherwise 1. `bad` is -2 - index for an
        example that is damaged but used, else -1. If rows hold up to N examples, the three are
        [b, N]. Close it, or use it in a `with` statement.

    Raises:
        DataSetError: too little shared memory.
        ConfigError: a setting is out of range.
    """
    _check_share(batch_size, process_index, process_count, examples_per_row(preprocess))
    _check_workers(workers, prefetch)
    share = Share(dataset, preprocess, batch_size, process_index, process_count)
    batches: Batches
    if isinstance(preprocess, PackedPreprocess):
        batches = PackedEvalBatches(share, preprocess, eval_rows(dataset, preprocess))
    else:
        batches = _EvalBatches(share, _plan(dataset, preprocess, batch_size))
    return iterate(batches, workers=workers, prefetch=prefetch, image_seconds=image_seconds)


def _plan(
    dataset: Dataset, preprocess: Preprocess | BucketedPreprocess, batch_size: int
) -> tuple[tuple[Spec, np.ndarray], ...]:
    """Returns the arrays and the examples of each global batch of one pass."""
    buckets: dict[Hashable, list[int]] = {}
    if not isinstance(preprocess, BucketedPreprocess):
        groups = [(preprocess.spec, np.arange(len(dataset)))]
    else:
        for index, (width, height) in enumerate(sizes_of(dataset).tolist()):
            buckets.setdefault(preprocess.bucket(width, height), []).append(index)
        groups = [(preprocess.spec_of(key), np.array(found)) for key, found in buckets.items()]
    return tuple(
        (spec, indices[start : start + batch_size])
        for spec, indices in groups
        for start in range(0, len(indices), batch_size)
    )


@dataclasses.dataclass(frozen=True)
class _TrainBatches(SharedBatches):
    share: Share
    order: Order
    start_step: int

    @property
    def bytes_per_batch(self) -> int:
        return self.bytes_of(self.order.largest, self.rows)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Batch:
        share, step = self.share, self.start_step + number
        spec, indices = self.order.batch(step)
        batch = empty_batch(spec, self.rows)
        for row, drawn in enumerate(indices[share.first : share.first + self.rows].tolist()):
            index, example = share.load_decodable(self.order, step, share.first + row, drawn)
            if isinstance(self.order, BucketedOrder):
                example = enlarged(example, spec)
            _place(batch, spec, row, index, example)
            if index != drawn:
                batch["bad"][row] = drawn
        return batch


@dataclasses.dataclass(frozen=True)
class _EvalBatches(SharedBatches):
    share: Share
    plan: tuple[tuple[Spec, np.ndarray], ...]

    @property
    def bytes_per_batch(self) -> int:
        return max((self.bytes_of(spec, self.rows) for spec, _ in self.plan), default=0)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        share = self.share
        spec, indices = self.plan[number]
        batch = empty_batch(spec, self.rows)
        batch["weight"] = np.zeros(self.rows, np.float32)
        for row, index in enumerate(indices[share.first : share.first + self.rows].tolist()):
            batch["index"][row] = index
            try:
                example = share.load(index, None)
            except UndecodableImageError:
                batch["bad"][row] = index
                continue
            _place(batch, spec, row, index, example)
            batch["weight"][row] = 1
        return batch


def _place(
    batch: Batch, spec: Spec, row: int, index: int, example: Mapping[str, np.ndarray]
) -> None:
    """Writes the arrays of an example into a row."""
    for name in spec:
        batch[name][row] = example[name]
    note(batch, row, index, example)


def _check_share(
    batch_size: int, process_index: int, process_count: int, row_examples: int
) -> None:
    """Checks that the processes can share a global batch."""
    if batch_size < 1 or batch_size % (process_count * row_examples):
        of_rows = f" with rows of {row_examples} images each" if row_examples > 1 else ""
        raise ConfigError(
            f"config.train.batch_size={batch_size} must be a multiple of the "
            f"{process_count} processes{of_rows}"
        )
    if not 0 <= process_index < process_count:
        raise ValueError(f"process {process_index} of {process_count} does not exist")


def _check_workers(workers: int, prefetch: int) -> None:
    for name, value in (("workers", workers), ("prefetch", prefetch)):
        if value < 0:
            raise ConfigError(f"config.data.{name}={value} must be at least 0")
