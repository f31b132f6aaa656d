"""The interfaces between making batches and iterating over them."""

from typing import Protocol, runtime_checkable

import numpy as np

Batch = dict[str, np.ndarray]


@runtime_checkable
class ClosableIterator(Protocol):
    """An iterator of Grain."""

    def __next__(self) -> Batch: ...

    def close(self) -> None:
        """Ends threads and processes."""


@runtime_checkable
class Batches(Protocol):
    """Batches with random access. They can be pickled."""

    @property
    def rows(self) -> int:
        """Examples per batch."""

    @property
    def bytes_per_batch(self) -> int:
        """Bytes."""

    @property
    def owner(self) -> int:
        """Identity of the data set, under which threads note the example in hand."""

    def name_of(self, index: int) -> str:
        """Returns the name of an example."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> Batch: ...
