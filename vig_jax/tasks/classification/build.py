"""Builds classification from a config and the metadata of the data set."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from vig_jax.augment.mixup import Mix, draw
from vig_jax.augment.registry import check_augmentations
from vig_jax.config import DataConfig, RunConfig
from vig_jax.data.dataset import ClassificationDataset, Dataset
from vig_jax.data.datasets.relabel import match_classes
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.errors import ConfigError, DataSetError
from vig_jax.models.from_config import model_from_config, with_image_size, with_num_classes
from vig_jax.tasks.classification.evaluation import (
    PRIMARY_METRIC,
    ClassificationEvaluation,
    draw_results,
)
from vig_jax.tasks.classification.native import make_native
from vig_jax.tasks.classification.preview import ClassificationPreview
from vig_jax.tasks.classification.task import Classification
from vig_jax.tasks.registry import Panel, ReportSpec, TaskBundle, TaskEntry


def make_classification(config: RunConfig, metadata: Mapping[str, Any]) -> TaskBundle:
    """Builds the classification task.

    Args:
        config: the run's settings.
        metadata: `class_names`, by label; may be absent if `config.model.num_classes` is set.

    Raises:
        ConfigError: settings that cannot work or do not fit the data set.
    """
    names = tuple(metadata.get("class_names", ()))
    config = with_num_classes(with_image_size(config), names)
    if config.data.native_sizes:
        return make_native(config, names)
    check_augmentations(config.data.augmentations)
    _check_mixing(config.data, config.train.batch_size // config.train.accumulation_steps)
    classes = config.model.num_classes
    assert classes is not None
    model: Any = model_from_config(config.model)
    task = Classification(model, classes, config.data, config.train.label_smoothing)
    return TaskBundle(
        config=config,
        task=task,
        evaluation=ClassificationEvaluation(model, classes, config.data, names),
        train_preprocess=ClassificationPreprocess(
            dataclasses.replace(config.data, eval_size=None), train=True
        ),
        eval_preprocess=ClassificationPreprocess(config.data, train=False),
        preview=ClassificationPreview(task, names),
        summary=f"{classes} classes",
    )


def _check_mixing(data: DataConfig, rows: int) -> None:
    """Refuses mixing groups that do not divide the batch, or each of its parts."""
    mixup, cutmix = data.mixup_alpha, data.cutmix_alpha
    if mixup or cutmix:

        def once() -> Mix:
            key, group = jax.random.PRNGKey(0), data.mixup_group
            return draw(key, rows, 1, 1, mixup_alpha=mixup, cutmix_alpha=cutmix, group=group)

        jax.eval_shape(once)


def match_data(
    trained: Mapping[str, Any],
    dataset: Dataset,
    config: RunConfig,
    class_map: Mapping[str, str] | None,
) -> Dataset:
    """Returns a data set with the labels that a trained model has for its classes.

    Args:
        trained: metadata of the data set that the model was trained on.
        dataset: the data set to evaluate.
        config: of the model.
        class_map: names of the data set to names of the model, where they differ.

    Raises:
        DataSetError: the data set has classes that the model does not know.
        ConfigError: the model has no head.
    """
    if not isinstance(dataset, ClassificationDataset):
        raise DataSetError(f"{dataset.info.name} has no classes: it cannot be classified")
    names = tuple(trained.get("class_names", ()))
    if names == tuple(f"class {label}" for label in range(len(names))):
        names = ()  # of converted weights without names
    if config.model.num_classes == 0:
        raise ConfigError(
            "the weights have no head and cannot classify: fine-tune them with config.init_weights"
        )
    classes = config.model.num_classes or len(names)
    return match_classes(dataset, names, num_classes=classes, class_map=class_map)


ENTRY = TaskEntry(
    make=make_classification,
    match_data=match_data,
    file_predictor="vig_jax.inference.files:Classifier.from_loaded",
    report=ReportSpec(
        primary_metric=PRIMARY_METRIC,
        panels=(
            Panel(
                "held-out accuracy, %",
                (("top1", "top-1"), ("f1", "F1"), ("top5", "top-5")),
                percent=True,
                limit=2,
            ),
        ),
        draw=draw_results,
    ),
)
