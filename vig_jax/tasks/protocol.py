"""What the training loop needs to know of a task, and nothing more."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

Params = Any  # nested dictionary of arrays
Batch = Mapping[str, jax.Array]
Sums = dict[str, jax.Array]  # scalars and arrays that add up over batches


@runtime_checkable
class Task(Protocol):
    """A model with its loss and its metrics. Every method but `metrics` can be jitted."""

    @property
    def headline(self) -> str:
        """The metric by which checkpoints are compared; more is better."""

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> jax.Array:
        """The scalar training loss of a batch; `key` drives all of its randomness."""

    def training_inputs(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The images and targets that `loss` gives to the model, for people to look at."""

    def pixels(self, images: jax.Array) -> jax.Array:
        """Such images as uint8."""

    def evaluate(self, params: Params, batch: Batch) -> Sums:
        """Weighted sums over an evaluation batch, ready to be added to those of other batches."""

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Metric values from the sums over a whole data set."""
