"""The interfaces between a task and training, evaluation, previews and reports.

A task is anything that a backbone is trained for: classification, segmentation, detection. The
training loop, the checkpoints, the reports and the commands know these interfaces alone.
`vig_jax.tasks.registry` makes the objects from a config.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import flax.linen as nn
import jax
import numpy as np
from jax.sharding import Mesh

from vig_jax.data.dataset import Dataset

Params = Any  # nested dictionary of arrays
Variables = Mapping[str, Any]  # {"params": Params} and mutable collections such as "batch_stats"
Batch = Mapping[str, jax.Array]  # on the devices, with a leading batch axis
HostBatch = Mapping[str, np.ndarray]  # this process's rows of a global batch
BatchSpec = Mapping[str, jax.ShapeDtypeStruct]  # shape and dtype of one example, by name
PredictStep = Callable[[Variables, Batch], Any]  # the compiled `Evaluation.predict`
State = TypeVar("State")


class Aux(NamedTuple):
    """The second result of a training loss."""

    metrics: Mapping[str, jax.Array] = {}  # scalars to log, by name
    mutable: Mapping[str, Any] = {}  # the updated mutable collections; empty: none changed


@runtime_checkable
class Task(Protocol):
    """A model and its training loss. Both methods can be jitted."""

    @property
    def model(self) -> nn.Module:
        """The module that `init` and `loss` apply."""

    @property
    def batch_spec(self) -> BatchSpec:
        """The arrays of a batch that training puts on the devices."""

    def init(self, key: jax.Array) -> Variables:
        """Returns random parameters and the initial mutable collections."""

    def loss(self, variables: Variables, batch: Batch, key: jax.Array) -> tuple[jax.Array, Aux]:
        """Returns the scalar loss of a batch, a mean over examples; `key` drives all draws."""


@runtime_checkable
class PreparesInputs(Protocol):
    """A `Task` whose `loss` is the loss of inputs that depend on the batch and the key alone.

    Training makes these inputs, such as augmented images, in a separate program, which compiles
    beside that of the gradients.
    """

    def training_inputs(self, batch: Batch, key: jax.Array) -> Any:
        """Returns what the model and its loss take: arrays with a leading batch axis."""

    def loss_of_inputs(
        self, variables: Variables, inputs: Any, key: jax.Array
    ) -> tuple[jax.Array, Aux]:
        """Returns the loss of `training_inputs`, given the same key."""


def preparing(task: Task) -> PreparesInputs | None:
    """Returns a task that prepares inputs; None for others.

    A class that overrides `loss`, but not `loss_of_inputs`, no longer prepares inputs.
    """
    if not isinstance(task, PreparesInputs):
        return None
    defined = [
        next(number for number, kind in enumerate(type(task).__mro__) if name in vars(kind))
        for name in ("loss", "loss_of_inputs")
    ]
    return task if defined[0] >= defined[1] else None


@runtime_checkable
class Evaluation(Protocol[State]):
    """The metrics of a task over a data set.

    `predict` runs on the devices. `update` adds its outputs to a state, which is a sum or a
    collection. `compute` turns the state of the whole data set into metrics.
    """

    @property
    def primary_metric(self) -> str:
        """The metric that ranks checkpoints; more is better."""

    @property
    def batch_spec(self) -> BatchSpec:
        """The arrays of a batch that evaluation puts on the devices."""

    @property
    def per_example(self) -> bool:
        """The kind of outputs.

        True: arrays with a leading batch axis. Each process updates a state from the outputs for
        its rows, and the states are merged at the end. False: totals over the global batch,
        the same in every process.
        """

    def predict(self, variables: Variables, batch: Batch) -> Any:
        """Returns the outputs of a batch. Can be jitted."""

    def init(self) -> State:
        """Returns the state before the first batch."""

    def update(self, state: State, outputs: Any, batch: HostBatch) -> State:
        """Returns the state with one more batch.

        Args:
            state: the state so far.
            outputs: the outputs of `predict`: NumPy arrays of this process's rows, or totals on
                the devices.
            batch: this process's rows as the loader made them, with `index` (the example's number
                in the data set) and `weight` (0 for rows that must not count).
        """

    def merge(self, states: Sequence[State]) -> State:
        """Returns one state from those of all processes, in their order. For `per_example`."""

    def compute(self, state: State) -> dict[str, float]:
        """Returns the metrics by name.

        Raises:
            DataSetError: nothing was evaluated.
        """

    def save(self, state: State, folder: Path, description: str) -> None:
        """Writes detailed results, such as a confusion matrix, for `ReportSpec.draw`.

        Args:
            state: the state of the whole data set.
            folder: an existing folder.
            description: names the weights, for titles.
        """


@runtime_checkable
class SeveralPrograms(Protocol):
    """An `Evaluation` whose `predict` is not one program, but several that it compiles itself."""

    def predict_step(self, mesh: Mesh) -> PredictStep:
        """Returns `predict` for batches that are split over the mesh."""


@runtime_checkable
class Detailed(Protocol):
    """An `Evaluation` with more results for `vig evaluate --json` than its metrics."""

    def details(self, state: Any, name_of: Callable[[int], str]) -> dict[str, Any]:
        """Returns JSON values by names that are no metrics; NaN becomes null.

        Args:
            state: the state of the whole data set.
            name_of: `Dataset.name_of`, from the number of an example to its name.
        """


@runtime_checkable
class NeedsDataset(Protocol):
    """An `Evaluation` that reads more of the evaluation data than batches hold.

    An example is the ground truth of detection, which has objects that training leaves out.
    """

    def with_dataset(self, dataset: Dataset) -> Evaluation[Any]:
        """Returns the evaluation of a data set.

        Args:
            dataset: the `index` of a batch has the numbers of its examples.

        Raises:
            DataSetError: the data set lacks what the evaluation needs.
        """


@runtime_checkable
class Exporting(Protocol):
    """An `Evaluation` whose predictions can be written for other programs."""

    def export(self, state: Any, folder: Path) -> list[Path]:
        """Writes all predictions, for `vig evaluate --results`, and returns the files.

        Args:
            state: the state of the whole data set.
            folder: an existing folder.
        """


@runtime_checkable
class Preview(Protocol):
    """A figure of what the model sees in training."""

    def inputs(self, batch: Batch, key: jax.Array, rows: np.ndarray) -> Any:
        """Returns arrays to draw: the given rows as `Task.loss` gives them to the model."""

    def draw(self, arrays: Any, path: Path) -> None:
        """Writes a PNG of the arrays of `inputs`, as NumPy arrays."""


@runtime_checkable
class ShowsInputs(Protocol):
    """A `Preview` of a task that `PreparesInputs`: it shows what training has prepared."""

    def rows_of(self, inputs: Any, rows: np.ndarray) -> Any:
        """Returns the arrays of `Preview.inputs`, from `PreparesInputs.training_inputs`."""
