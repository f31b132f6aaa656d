"""The order of training: which examples are in the global batch of each step.

An order is a pure function of (seed, step). No example comes twice in an epoch.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Int64

from vig_jax.data.dataset import ClassificationBase, Dataset
from vig_jax.data.preprocess.protocol import (
    DrawnBuckets,
    PackedPreprocess,
    Preprocess,
    SizedDataset,
    Spec,
    bytes_per_example,
)
from vig_jax.errors import DataSetError

# Streams of random numbers under one seed.
_SHUFFLE, _AUGMENT, _VIEWS = 0, 1, 2
_BLOCK = 4  # numbers that one step of Philox's counter gives


def sizes_of(dataset: Dataset) -> Int[np.ndarray, "n 2"]:
    """Returns width and height of every image, pixels.

    Raises:
        DataSetError: the data set does not know them.
    """
    if not isinstance(dataset, SizedDataset):
        raise DataSetError(f"{dataset.info.name} does not know the sizes of its images")
    return dataset.sizes()


def known_sizes(dataset: Dataset) -> Int[np.ndarray, "n 2"] | None:
    """Returns width and height of every image, pixels, or None if the data set lacks them."""
    if isinstance(dataset, ClassificationBase):
        return dataset.known_sizes()
    return dataset.sizes() if isinstance(dataset, SizedDataset) else None


def steps_per_epoch(
    dataset: Dataset,
    batch_size: int,
    preprocess: Preprocess | DrawnBuckets | PackedPreprocess | None = None,
) -> int:
    """Returns the number of full global batches in one epoch; the rest of the order is left out.

    With buckets, examples that do not fill a batch of their bucket are put into the next larger
    one. Only those that are left in the largest buckets are left out, fewer than a batch of each.
    The number of steps is what is certain, whatever the buckets of the examples are: with one
    largest bucket, or without buckets, it is n // batch_size.

    Args:
        dataset: the training split.
        batch_size: global.
        preprocess: makes the arrays of one example.

    Returns:
        At least 1.

    Raises:
        DataSetError: fewer examples than one batch needs.
    """
    largest = 1
    if isinstance(preprocess, DrawnBuckets):
        largest = sum(larger is None for larger in _larger_buckets(preprocess))
    most = (len(dataset) + largest - 1) // largest
    if most < batch_size:
        kinds = f" of images in {largest} kinds of buckets" if largest > 1 else ""
        raise DataSetError(
            f"the training split has {len(dataset)} images, fewer than one batch of {batch_size}"
            f"{kinds}: set config.train.batch_size to at most {most}"
        )
    return (len(dataset) - (largest - 1) * (batch_size - 1)) // batch_size


@dataclasses.dataclass(frozen=True)
class ShuffledOrder:
    """All examples in random order, with arrays of one shape.

    Args:
        spec: of an example, or of a row that holds several.
        length: number of examples.
        batch_size: global.
        seed: of the order.
    """

    spec: Spec
    length: int
    batch_size: int
    seed: int

    @property
    def largest(self) -> Spec:
        """The arrays of an example in the largest batch."""
        return self.spec

    def batch(self, step: int) -> tuple[Spec, Int64[np.ndarray, "B"]]:
        """Returns the arrays and the examples of a global batch."""
        epoch, number = divmod(step, self.length // self.batch_size)
        order = _epoch_order(self.seed, epoch, self.length)
        return self.spec, order[number * self.batch_size : (number + 1) * self.batch_size]

    def rng(self, step: int, row: int, index: int) -> np.random.Generator:
        """Returns the generator of the row of a global batch, whatever the example is."""
        del index
        return _generator(self.seed, _AUGMENT, step * self.batch_size + row)

    def following(self, step: int, index: int) -> Iterator[int]:
        """Yields an example and those that may replace it: the next ones of the data set."""
        del step
        return ((index + i) % self.length for i in range(self.length))


class _Epoch(NamedTuple):
    """The batches of an epoch with buckets.

    Attributes:
        numbers: number of the bucket of each example.
        buckets: number of the bucket of each batch.
        batches: examples of each batch.
    """

    numbers: Int64[np.ndarray, "n"]
    buckets: Int64[np.ndarray, "steps"]
    batches: Int64[np.ndarray, "steps B"]


# Compared by identity: an array has no truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class BucketedOrder:
    """All examples in random order, in batches of one bucket each.

    Args:
        preprocess: knows the buckets.
        sizes: width and height of the images, pixels.
        batch_size: global.
        steps: batches of an epoch, from `steps_per_epoch`.
        seed: of the order and of the numbers that decide the buckets.
    """

    preprocess: DrawnBuckets
    sizes: Int[np.ndarray, "n 2"]
    batch_size: int
    steps: int
    seed: int

    @property
    def largest(self) -> Spec:
        """The arrays of an example in the largest batch."""
        return max(self._specs, key=bytes_per_example)

    def batch(self, step: int) -> tuple[Spec, Int64[np.ndarray, "B"]]:
        """Returns the arrays and the examples of a global batch."""
        number, position = divmod(step, self.steps)
        epoch = _bucketed_epoch(self, number)
        return self._specs[epoch.buckets[position]], epoch.batches[position]

    def rng(self, step: int, row: int, index: int) -> np.random.Generator:
        """Returns the generator of an example in the epoch of a step, whatever its row is."""
        del row
        first = index * self._blocks
        return _generator(self.seed, _VIEWS, step // self.steps, first)

    def following(self, step: int, index: int) -> Iterator[int]:
        """Yields an example, and those that may replace it: the next that fit into its batch."""
        number, position = divmod(step, self.steps)
        epoch, specs = _bucketed_epoch(self, number), self._specs
        spec = specs[epoch.buckets[position]]
        fitting = np.flatnonzero(np.array([_holds(spec, other) for other in specs])[epoch.numbers])
        return iter(np.roll(fitting, -int(np.searchsorted(fitting, index))).tolist())

    def plan(self, epoch: int) -> _Epoch:
        """Draws the buckets and the batches of an epoch."""
        draws = _generator(self.seed, _VIEWS, epoch).random(
            (len(self.sizes), self._blocks * _BLOCK)
        )
        numbers = self.preprocess.drawn_buckets(self.sizes, draws[:, : self.preprocess.draws])
        rng = _generator(self.seed, _SHUFFLE, epoch)
        order = rng.permutation(len(self.sizes))
        larger = _larger_buckets(self.preprocess)
        waiting = [order[numbers[order] == bucket] for bucket in range(len(larger))]
        batches, buckets = [], []
        for bucket in sorted(range(len(larger)), key=lambda i: bytes_per_example(self._specs[i])):
            count = len(waiting[bucket]) // self.batch_size
            full, rest = np.split(waiting[bucket], [count * self.batch_size])
            batches.append(full.reshape(count, self.batch_size))
            buckets.append(np.full(count, bucket))
            if (next_one := larger[bucket]) is not None:
                waiting[next_one] = np.concatenate([rest, waiting[next_one]])
        every, of_bucket = np.concatenate(batches), np.concatenate(buckets)
        mixed = rng.permutation(len(every))[: self.steps]
        return _Epoch(numbers, of_bucket[mixed], every[mixed])

    @property
    def _specs(self) -> list[Spec]:
        return [self.preprocess.spec_of(bucket) for bucket in self.preprocess.buckets]

    @property
    def _blocks(self) -> int:
        """Steps of the counter between the numbers of two examples."""
        return -(-self.preprocess.draws // _BLOCK)


Order = ShuffledOrder | BucketedOrder


def make_order(
    dataset: Dataset,
    preprocess: Preprocess | DrawnBuckets | PackedPreprocess,
    batch_size: int,
    seed: int,
) -> Order:
    """Returns the order of the training examples.

    Raises:
        DataSetError: fewer examples than a batch, or buckets without known sizes.
    """
    steps = steps_per_epoch(dataset, batch_size, preprocess)
    if isinstance(preprocess, DrawnBuckets):
        return BucketedOrder(preprocess, sizes_of(dataset), batch_size, steps, seed)
    return ShuffledOrder(preprocess.spec, len(dataset), batch_size, seed)


def enlarged(example: Mapping[str, np.ndarray], spec: Spec) -> Mapping[str, np.ndarray]:
    """Returns an example with zeros behind its arrays, for a batch of a larger bucket."""
    arrays = dict(example)
    for name, (shape, dtype) in spec.items():
        if arrays[name].shape != shape:
            arrays[name] = np.zeros(shape, dtype)
            arrays[name][tuple(map(slice, example[name].shape))] = example[name]
    return arrays


def _larger_buckets(preprocess: DrawnBuckets) -> list[int | None]:
    """Returns for each bucket the smallest other one that holds its arrays; None: there is none."""
    specs = [preprocess.spec_of(bucket) for bucket in preprocess.buckets]
    found: list[int | None] = []
    for spec in specs:
        size = bytes_per_example(spec)
        larger = [i for i, s in enumerate(specs) if bytes_per_example(s) > size and _holds(s, spec)]
        found.append(min(larger, key=lambda i: bytes_per_example(specs[i]), default=None))
    return found


def _holds(large: Spec, small: Spec) -> bool:
    """Returns whether no array of `small` is longer along an axis."""
    pairs = [(large[name][0], small[name][0]) for name in small]
    return all(a >= b for shape, other in pairs for a, b in zip(shape, other, strict=True))


def _generator(seed: int, stream: int, number: int, first: int = 0) -> np.random.Generator:
    """Returns a generator per (seed, stream, number), separated by 2**128 draws.

    Args:
        seed: key of Philox.
        stream: one of the constants above.
        number: of the epoch or the row.
        first: steps of the counter to skip.
    """
    return np.random.Generator(np.random.Philox(key=seed, counter=[first, 0, number, stream]))


@functools.lru_cache(maxsize=2)  # prefetching crosses from one epoch into the next
def _epoch_order(seed: int, epoch: int, length: int) -> Int64[np.ndarray, "n"]:
    return _generator(seed, _SHUFFLE, epoch).permutation(length)


@functools.lru_cache(maxsize=2)
def _bucketed_epoch(order: BucketedOrder, epoch: int) -> _Epoch:
    return order.plan(epoch)
