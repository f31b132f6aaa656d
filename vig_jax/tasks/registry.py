"""The tasks by name, and the objects that a run needs of one.

`config.task.name` chooses a task. `register_task` adds one from outside of the package.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn

from vig_jax.config import RunConfig, TaskConfig
from vig_jax.config.schema import TASK_CONFIGS
from vig_jax.data.dataset import Dataset
from vig_jax.data.preprocess.protocol import (
    BucketedPreprocess,
    DrawnBuckets,
    PackedPreprocess,
    Preprocess,
)
from vig_jax.errors import ConfigError
from vig_jax.tasks.protocol import Evaluation, NeedsDataset, Preview, Task, Variables
from vig_jax.text import did_you_mean
from vig_jax.weights.initial import classifier_variables


@dataclasses.dataclass(frozen=True)
class TaskBundle:
    """A task and its companions, for one run.

    Attributes:
        config: the run's settings with everything filled in that the data set decides.
        task: the model and its loss.
        evaluation: the metrics.
        train_preprocess: from an example of the data set to arrays for training.
        eval_preprocess: the same for evaluation.
        preview: draws the first batch; None: there is no figure.
        summary: a phrase about the data set for the console, for example "10 classes".
    """

    config: RunConfig
    task: Task
    evaluation: Evaluation[Any]
    train_preprocess: Preprocess | DrawnBuckets | PackedPreprocess
    eval_preprocess: Preprocess | BucketedPreprocess | PackedPreprocess
    preview: Preview | None = None
    summary: str = ""

    def evaluated_on(self, dataset: Dataset) -> "TaskBundle":
        """Returns the bundle with the evaluation of a data set; see `NeedsDataset`.

        Raises:
            DataSetError: the data set lacks what the evaluation needs.
        """
        if not isinstance(self.evaluation, NeedsDataset):
            return self
        return dataclasses.replace(self, evaluation=self.evaluation.with_dataset(dataset))


@dataclasses.dataclass(frozen=True)
class Panel:
    """A diagram of evaluation metrics against the epoch.

    Attributes:
        title: of the diagram, with the unit.
        metrics: names and labels of the curves; the first `limit` of those that were logged are
            drawn.
        percent: whether to multiply fractions by 100.
        limit: the largest number of metrics.
    """

    title: str
    metrics: Sequence[tuple[str, str]]
    percent: bool = False
    limit: int = 4


@dataclasses.dataclass(frozen=True)
class ReportSpec:
    """The parts of a report that depend on the task.

    Attributes:
        primary_metric: that of the task's evaluation.
        panels: diagrams of evaluation metrics.
        draw: draws the files that `Evaluation.save` has written into a folder, if any, and returns
            the paths of the figures and tables.
    """

    primary_metric: str
    panels: Sequence[Panel] = ()
    draw: Callable[[Path], list[Path]] = lambda folder: []


@dataclasses.dataclass(frozen=True)
class TaskEntry:
    """A registered task.

    Attributes:
        make: builds the bundle from a config and the data set's metadata (`DatasetInfo.metadata`).
        report: the parts of a report that depend on the task.
        match_data: returns a data set in the terms of a trained model, for example with the labels
            that the model has for its classes, or raises DataSetError. Takes the metadata of the
            data set that the model was trained on, the new data set, the model's config and a
            mapping of the new data set's names to the model's, or None.
        initial_variables: reads the weights that `config.init_weights` names. Takes the resolved
            config, the task's model and the metadata of the training data. Returns the variables
            in float32 and a line about them for the log; those that are left out keep the run's
            random initialisation. Raises WeightsError.
    """

    make: Callable[[RunConfig, Mapping[str, Any]], TaskBundle]
    report: ReportSpec
    match_data: Callable[
        [Mapping[str, Any], Dataset, RunConfig, Mapping[str, str] | None], Dataset
    ] = lambda trained, dataset, config, names: dataset
    file_predictor: str = ""
    initial_variables: Callable[
        [RunConfig, nn.Module, Mapping[str, Any]], tuple[Variables, str]
    ] = classifier_variables


# Modules with an `ENTRY`, imported on first use.
_BUILT_IN = {
    "detection": "vig_jax.tasks.detection",
    "classification": "vig_jax.tasks.classification",
    "segmentation": "vig_jax.tasks.segmentation",
}
_REGISTERED: dict[str, TaskEntry] = {}


def register_task(name: str, entry: TaskEntry, config: type[TaskConfig] = TaskConfig) -> None:
    """Adds a task.

    Args:
        name: the value of `config.task.name`, not in use yet.
        entry: the task.
        config: the class of `config.task`, a frozen dataclass derived from `TaskConfig`.

    Raises:
        ConfigError: the name is in use.
    """
    if name in _BUILT_IN or name in _REGISTERED:
        raise ConfigError(f"{name!r} is the name of a task already: choose another one")
    _REGISTERED[name] = entry
    TASK_CONFIGS[name] = config


def is_built_in(name: str) -> bool:
    """Returns whether a task is one of this package."""
    return name in _BUILT_IN


def get_task(name: str) -> TaskEntry:
    """Returns a task by name.

    Raises:
        ConfigError: there is no such task.
    """
    if name in _BUILT_IN:
        entry: TaskEntry = importlib.import_module(_BUILT_IN[name]).ENTRY
        return entry
    if name not in _REGISTERED:
        known = (*_BUILT_IN, *_REGISTERED)
        raise ConfigError(f"config.task.name={name!r} is not a task; {did_you_mean(name, known)}")
    return _REGISTERED[name]


def make_task(config: RunConfig, metadata: Mapping[str, Any]) -> TaskBundle:
    """Builds the task that `config.task` names.

    Args:
        config: the run's settings.
        metadata: of the data set, see `vig_jax.data.dataset.DatasetInfo`.

    Raises:
        ConfigError: an unknown task, or settings that do not fit the task or the data set.
    """
    bundle = get_task(config.task.name).make(config, metadata)
    if config.data.native_sizes and not isinstance(bundle.eval_preprocess, PackedPreprocess):
        raise ConfigError(
            "config.data.native_sizes (--max-tokens) is for classification, not for the task "
            f"{config.task.name!r}: set it to False"
        )
    return bundle
