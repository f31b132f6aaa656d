"""Batches as a pure function of (seed, step, process).

The content of a batch depends on nothing else: not on the number of workers or processes, nor on
what was read before. To resume is to start at another step. The loader knows nothing of images: the
`Preprocess` says which arrays an example becomes.
"""

import dataclasses
import itertools
import sys
from collections.abc import Hashable, Mapping

import numpy as np

from vig_jax.data.dataset import Dataset
from vig_jax.data.loader import watch
from vig_jax.data.loader.iterator import BatchIterator, iterate
from vig_jax.data.loader.orders import BucketedOrder, Order, enlarged, make_order, sizes_of
from vig_jax.data.loader.protocol import Batch
from vig_jax.data.preprocess.protocol import (
    DAMAGED,
    BucketedPreprocess,
    DrawnBuckets,
    Preprocess,
    Spec,
    bytes_per_example,
)
from vig_jax.errors import ConfigError, DataSetError, UndecodableImageError

_LONGEST_BAD_RUN = 100


def train_batches(
    dataset: Dataset,
    preprocess: Preprocess | DrawnBuckets,
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
    `DrawnBuckets` each batch has the shapes of one bucket.

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
    _check(batch_size, process_index, process_count, workers, prefetch)
    if not 0 <= seed < 2**63 or start_step < 0:
        raise ConfigError(f"seed {seed} and step {start_step} must not be negative")
    order = make_order(dataset, preprocess, batch_size, seed)
    share = _Share(dataset, preprocess, batch_size, process_index, process_count)
    batches = _TrainBatches(share, order, start_step)
    # Two copies: evaluation workers run beside those of training, and too little shared memory
    # fails now rather than after an epoch.
    return iterate(
        batches, workers=workers, prefetch=prefetch, copies=2, image_seconds=image_seconds
    )


def eval_batches(
    dataset: Dataset,
    preprocess: Preprocess | BucketedPreprocess,
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
    images of one bucket, and the pass is in order within each bucket.

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
        example that is damaged but used, else -1. Close it, or use it in a `with` statement.

    Raises:
        DataSetError: too little shared memory.
        ConfigError: a setting is out of range.
    """
    _check(batch_size, process_index, process_count, workers, prefetch)
    share = _Share(dataset, preprocess, batch_size, process_index, process_count)
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
class _Share:
    """One process's rows of the global batches of a data set."""

    dataset: Dataset
    preprocess: Preprocess | BucketedPreprocess | DrawnBuckets
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
        watch.begin(index, owner=id(self.dataset))
        try:
            try:
                example = self.dataset[index]
            except OSError as error:
                raise UndecodableImageError(f"{type(error).__name__}: {error}") from error
            return self.preprocess(example, rng)
        finally:
            watch.end()


def _place(
    batch: Batch, spec: Spec, row: int, index: int, example: Mapping[str, np.ndarray]
) -> None:
    """Writes the arrays of an example into a row."""
    for name in spec:
        batch[name][row] = example[name]
    batch["index"][row] = index
    if DAMAGED in example:
        batch["bad"][row] = -2 - index


def _empty_batch(spec: Spec, rows: int) -> Batch:
    batch = {name: np.zeros((rows, *shape), dtype) for name, (shape, dtype) in spec.items()}
    for name in ("index", "bad"):
        batch[name] = np.full(rows, -1, np.int64)
    return batch


class _SharedRows:
    share: _Share

    @property
    def rows(self) -> int:
        return self.share.rows

    @property
    def owner(self) -> int:
        return id(self.share.dataset)

    def name_of(self, index: int) -> str:
        return self.share.dataset.name_of(index)

    def _bytes(self, spec: Spec) -> int:
        index_bad_weight = 20
        return self.rows * (bytes_per_example(spec) + index_bad_weight)


@dataclasses.dataclass(frozen=True)
class _TrainBatches(_SharedRows):
    share: _Share
    order: Order
    start_step: int

    @property
    def bytes_per_batch(self) -> int:
        return self._bytes(self.order.largest)

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Batch:
        share, step = self.share, self.start_step + number
        spec, indices = self.order.batch(step)
        batch = _empty_batch(spec, share.rows)
        for row, drawn in enumerate(indices[share.first : share.first + share.rows].tolist()):
            index, example = self._next_decodable(step, share.first + row, drawn)
            if isinstance(self.order, BucketedOrder):
                example = enlarged(example, spec)
            _place(batch, spec, row, index, example)
            if index != drawn:
                batch["bad"][row] = drawn
        return batch

    def _next_decodable(
        self, step: int, row: int, drawn: int
    ) -> tuple[int, Mapping[str, np.ndarray]]:
        """Returns the first example of `order.following` that can be decoded."""
        attempts = 0
        for index in itertools.islice(self.order.following(step, drawn), _LONGEST_BAD_RUN):
            try:
                return index, self.share.load(index, self.order.rng(step, row, index))
            except UndecodableImageError as error:
                reason, attempts = error, attempts + 1
        raise DataSetError(
            f"{attempts} images in a row cannot be decoded, from "
            f"{self.share.dataset.name_of(drawn)} on ({reason}): are these images, and is the disk "
            "still there?"
        )


@dataclasses.dataclass(frozen=True)
class _EvalBatches(_SharedRows):
    share: _Share
    plan: tuple[tuple[Spec, np.ndarray], ...]

    @property
    def bytes_per_batch(self) -> int:
        return max((self._bytes(spec) for spec, _ in self.plan), default=0)

    def __len__(self) -> int:
        return len(self.plan)

    def __getitem__(self, number: int) -> Batch:
        share = self.share
        spec, indices = self.plan[number]
        batch = _empty_batch(spec, share.rows)
        batch["weight"] = np.zeros(share.rows, np.float32)
        for row, index in enumerate(indices[share.first : share.first + share.rows].tolist()):
            batch["index"][row] = index
            try:
                example = share.load(index, None)
            except UndecodableImageError:
                batch["bad"][row] = index
                continue
            _place(batch, spec, row, index, example)
            batch["weight"][row] = 1
        return batch


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
