"""The interface of host preprocessing: one example of a data set becomes arrays for a batch."""

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np

from vig_jax.data.dataset import Example

DAMAGED = "damaged"
"""The key under which a preprocess reports an example that is damaged, but used."""

Spec = Mapping[str, tuple[tuple[int, ...], np.dtype]]


@runtime_checkable
class Preprocess(Protocol):
    """A picklable function that runs in data workers, which must not import JAX."""

    @property
    def spec(self) -> Spec:
        """Shape and dtype of each array of one example, by name."""

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Returns the arrays that `spec` lists, and a true array under `DAMAGED` for damage.

        Args:
            example: from the data set.
            rng: source of random geometry; None in evaluation.

        Raises:
            UndecodableImageError: the example must be replaced or left out.
        """


def bytes_per_example(spec: Spec) -> int:
    """Returns the size of one example in a batch, in bytes."""
    return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in spec.values())
