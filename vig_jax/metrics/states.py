"""States of evaluations: sums on the devices, or rows collected on the host."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

Sums = Mapping[str, Any]  # scalars and arrays that add up over batches
Rows = Mapping[str, np.ndarray]  # one row per example, `index` among them


class SumsEvaluation:
    """Base class of evaluations whose `predict` returns totals that add up over batches."""

    per_example = False

    def init(self) -> Sums:
        """Returns the empty sum."""
        return {}

    def update(self, state: Sums, outputs: Sums, batch: Mapping[str, np.ndarray]) -> Sums:
        """Returns the sum with one more batch; nothing waits for the device."""
        return jax.tree.map(jax.lax.add, state, outputs) if state else outputs

    def merge(self, states: Sequence[Sums]) -> Sums:
        """Returns the first state: totals are global, so all processes have the same."""
        return states[0]


class RowsEvaluation:
    """Base class of evaluations that need the outputs for each example, collected on the host."""

    per_example = True

    def init(self) -> list[Rows]:
        """Returns the empty collection."""
        return []

    def update(
        self, state: list[Rows], outputs: Rows, batch: Mapping[str, np.ndarray]
    ) -> list[Rows]:
        """Returns the collection with the rows of one more batch whose weight is not 0."""
        counts = batch["weight"] > 0
        rows = {name: np.asarray(values)[counts] for name, values in outputs.items()}
        return [*state, {**rows, "index": batch["index"][counts]}]

    def merge(self, states: Sequence[list[Rows]]) -> list[Rows]:
        """Returns the rows of all processes."""
        return [rows for state in states for rows in state]


def joined(state: Sequence[Rows]) -> dict[str, np.ndarray]:
    """Returns the collected rows as one array per name, in the order of the data set.

    Args:
        state: from `RowsEvaluation`; not empty.
    """
    order = np.argsort(np.concatenate([rows["index"] for rows in state]), kind="stable")
    return {name: np.concatenate([rows[name] for rows in state])[order] for name in state[0]}
