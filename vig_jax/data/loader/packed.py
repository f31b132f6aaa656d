"""Batches whose rows hold several examples each; see `PackedPreprocess`.

A global batch of B examples has B / N rows. Training fills every row with the next N examples of
the order, so that batch k depends only on the seed and on k. Evaluation puts the examples in order
into a row while they fit, and then begins the next.
"""

import dataclasses
import sys
from collections.abc import Mapping

import numpy as np

from vig_jax.data.dataset import Dataset
from vig_jax.data.loader.orders import Order, known_sizes
from vig_jax.data.loader.protocol import Batch
from vig_jax.data.loader.share import Share, SharedBatches, empty_batch, note
from vig_jax.data.preprocess.protocol import PackedPreprocess
from vig_jax.errors import UndecodableImageError

Rows = tuple[tuple[int, int], ...]  # first example of each row, and the one after its last


def eval_rows(dataset: Dataset, preprocess: PackedPreprocess) -> Rows:
    """Returns the rows of one pass: each has the following examples as long as they fit.

    If the data set does not know the sizes of its images, each counts as the largest.
    """
    most, room = preprocess.row_examples, preprocess.row_length
    lengths = np.full(len(dataset), preprocess.most_length)
    # The sizes matter only if a row may have no room for the largest images.
    if most * preprocess.most_length > room and (sizes := known_sizes(dataset)) is not None:
        lengths = preprocess.lengths(sizes)
    rows, first, used = [], 0, 0
    for number, length in enumerate(lengths.tolist()):
        if number - first == most or used + length > room:
            rows.append((first, number))
            first, used = number, 0
        used += length
    return (*rows, (first, len(lengths))) if len(lengths) else ()


class _PackedBatches(SharedBatches):
    preprocess: PackedPreprocess

    @property
    def packed_rows(self) -> int:
        """Rows of this process's arrays."""
        return self.rows // self.preprocess.row_examples

    @property
    def bytes_per_batch(self) -> int:
        """Bytes."""
        return self.bytes_of(self.preprocess.spec, self.packed_rows)

    def _empty(self) -> Batch:
        return empty_batch(self.preprocess.spec, self.packed_rows, self.preprocess.row_examples)


@dataclasses.dataclass(frozen=True)
class PackedTrainBatches(_PackedBatches):
    """Shuffled batches without end, from a step on."""

    share: Share
    preprocess: PackedPreprocess
    order: Order
    start_step: int

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, number: int) -> Batch:
        share, step, most = self.share, self.start_step + number, self.preprocess.row_examples
        _, indices = self.order.batch(step)
        batch = self._empty()
        for row in range(self.packed_rows):
            examples = []
            for place in range(most):
                position = share.first + row * most + place
                drawn = int(indices[position])
                index, example = share.load_decodable(self.order, step, position, drawn)
                note(batch, (row, place), index, example)
                if index != drawn:
                    batch["bad"][row, place] = drawn
                examples.append(example)
            for name, array in self.preprocess.row(examples).items():
                batch[name][row] = array
        return batch


@dataclasses.dataclass(frozen=True)
class PackedEvalBatches(_PackedBatches):
    """One pass in order. "weight" is 0 where a row has no example that could be decoded."""

    share: Share
    preprocess: PackedPreprocess
    plan: Rows

    def __len__(self) -> int:
        return -(-len(self.plan) // (self.packed_rows * self.share.process_count))

    def __getitem__(self, number: int) -> Batch:
        share, rows = self.share, self.packed_rows
        batch = self._empty()
        batch["weight"] = np.zeros(batch["index"].shape, np.float32)
        start = (number * share.process_count + share.process_index) * rows
        for row, (first, end) in enumerate(self.plan[start : start + rows]):
            examples: list[Mapping[str, np.ndarray]] = []
            undecodable: list[int] = []
            for index in range(first, end):
                try:
                    example = share.load(index, None)
                except UndecodableImageError:
                    undecodable.append(index)
                    continue
                note(batch, (row, len(examples)), index, example)
                batch["weight"][row, len(examples)] = 1
                examples.append(example)
            for place, index in enumerate(undecodable, len(examples)):
                batch["index"][row, place] = batch["bad"][row, place] = index
            for name, array in self.preprocess.row(examples).items():
                batch[name][row] = array
        return batch
