"""One process's examples of the global batches, and how they become batches."""

import dataclasses
import itertools
from collections.abc import Mapping

import numpy as np

from vig_jax.data.dataset import Dataset
from vig_jax.data.loader import watch
from vig_jax.data.loader.orders import Order
from vig_jax.data.loader.protocol import Batch
from vig_jax.data.preprocess.protocol import (
    DAMAGED,
    BucketedPreprocess,
    DrawnBuckets,
    PackedPreprocess,
    Preprocess,
    Spec,
    bytes_per_example,
)
from vig_jax.errors import DataSetError, UndecodableImageError

AnyPreprocess = Preprocess | BucketedPreprocess | DrawnBuckets | PackedPreprocess

_LONGEST_BAD_RUN = 100


@dataclasses.dataclass(frozen=True)
class Share:
    """One process's examples of the global batches of a data set."""

    dataset: Dataset
    preprocess: AnyPreprocess
    batch_size: int
    process_index: int
    process_count: int

    @property
    def examples(self) -> int:
        """Examples of a batch."""
        return self.batch_size // self.process_count

    @property
    def first(self) -> int:
        """Number of the first example in the global batch."""
        return self.process_index * self.examples

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

    def load_decodable(
        self, order: Order, step: int, number: int, drawn: int
    ) -> tuple[int, Mapping[str, np.ndarray]]:
        """Loads the first example of `order.following` that can be decoded.

        Args:
            order: of training.
            step: of the batch.
            number: of the example in the global batch.
            drawn: index of the example in the data set.

        Raises:
            DataSetError: too many in a row cannot be decoded.
        """
        attempts = 0
        for index in itertools.islice(order.following(step, drawn), _LONGEST_BAD_RUN):
            try:
                return index, self.load(index, order.rng(step, number, index))
            except UndecodableImageError as error:
                reason, attempts = error, attempts + 1
        raise DataSetError(
            f"{attempts} images in a row cannot be decoded, from "
            f"{self.dataset.name_of(drawn)} on ({reason}): are these images, and is the disk "
            "still there?"
        )


def empty_batch(spec: Spec, *shape: int) -> Batch:
    """Returns zeros for the arrays of `shape[0]` rows, and "index" and "bad" of -1 [*shape]."""
    batch = {name: np.zeros((shape[0], *rest), dtype) for name, (rest, dtype) in spec.items()}
    for name in ("index", "bad"):
        batch[name] = np.full(shape, -1, np.int64)
    return batch


def note(
    batch: Batch, place: int | tuple[int, int], index: int, example: Mapping[str, np.ndarray]
) -> None:
    """Writes where an example is, and whether it is damaged."""
    batch["index"][place] = index
    if DAMAGED in example:
        batch["bad"][place] = -2 - index


class SharedBatches:
    """Base class of the batches of a `Share`; see `vig_jax.data.loader.protocol.Batches`."""

    share: Share

    @property
    def rows(self) -> int:
        """Examples per batch."""
        return self.share.examples

    @property
    def owner(self) -> int:
        """Identity of the data set."""
        return id(self.share.dataset)

    def name_of(self, index: int) -> str:
        """Returns the name of an example."""
        return self.share.dataset.name_of(index)

    def bytes_of(self, spec: Spec, rows: int) -> int:
        """Returns the size of a batch of this number of rows, in bytes."""
        index_bad_weight = 20
        return rows * bytes_per_example(spec) + self.rows * index_bad_weight
