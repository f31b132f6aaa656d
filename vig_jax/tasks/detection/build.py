"""Builds detection from a config and the metadata of the data set."""

from collections.abc import Mapping
from typing import Any

from vig_jax.config import DetectionConfig, RunConfig
from vig_jax.data.dataset import Dataset, DetectionDataset
from vig_jax.data.preprocess.detection import DetectionPreprocess
from vig_jax.errors import ConfigError, DataSetError
from vig_jax.models.from_config import detector_from_config, with_num_classes
from vig_jax.tasks.detection.evaluation import DetectionEvaluation
from vig_jax.tasks.detection.preview import DetectionPreview
from vig_jax.tasks.detection.report import REPORT
from vig_jax.tasks.detection.task import Detection
from vig_jax.tasks.registry import TaskBundle, TaskEntry
from vig_jax.tasks.same_classes import check_same_classes
from vig_jax.tasks.segmentation.drawing import default_palette
from vig_jax.weights.initial import dense_variables


def make_detection(config: RunConfig, metadata: Mapping[str, Any]) -> TaskBundle:
    """Builds detection of boxes, and with `config.task.masks` of masks.

    Args:
        config: the run's settings.
        metadata: as `vig_jax.data.dataset.DetectionDataset` describes it.

    Raises:
        ConfigError: settings that cannot work or do not fit the data set.
    """
    settings = config.task
    assert isinstance(settings, DetectionConfig)
    names = tuple(metadata.get("instance_names", ()))
    config = with_num_classes(config, names)
    classes = config.model.num_classes
    assert classes is not None
    if settings.masks and not metadata.get("has_masks", True):
        raise ConfigError(
            "config.task.masks is True, but the data set has boxes alone: set "
            "config.task.masks=False"
        )
    palette = tuple(map(tuple, metadata.get("instance_palette", ())))
    palette += default_palette(classes)[len(palette) :]
    numbers = tuple(metadata.get("category_ids", ()))
    numbers += tuple(range(len(numbers) + 1, classes + 1))
    names += tuple(f"class {i}" for i in range(len(names), classes))
    model = detector_from_config(config)
    task = Detection(model, config.data, settings)
    return TaskBundle(
        config=config,
        task=task,
        evaluation=DetectionEvaluation(model, config.data, settings, names, palette, numbers),
        train_preprocess=DetectionPreprocess(config.data, settings, train=True),
        eval_preprocess=DetectionPreprocess(config.data, settings, train=False),
        preview=DetectionPreview(task, names, palette),
        summary=f"{classes} classes",
    )


def match_data(
    trained: Mapping[str, Any],
    dataset: Dataset,
    config: RunConfig,
    class_map: Mapping[str, str] | None,
) -> Dataset:
    """Returns a data set whose classes are those of a trained model.

    Args:
        trained: metadata of the data set that the model was trained on.
        dataset: the data set to evaluate.
        config: of the model.
        class_map: names of the data set to names of the model, where they differ.

    Raises:
        DataSetError: the data set has no objects, or other classes, or the same in another order.
            Of a model without class names only their number is compared.
    """
    if not isinstance(dataset, DetectionDataset):
        raise DataSetError(
            f"{dataset.info.name} has no boxes of objects: name a data set for detection with "
            "config.data.source"
        )
    check_same_classes(
        dataset.info.name,
        dataset.info.metadata.get("instance_names", ()),
        trained.get("instance_names", ()),
        config,
        class_map,
        cure="Objects are compared by class number: order the categories as in training",
    )
    return dataset


ENTRY = TaskEntry(
    make=make_detection,
    match_data=match_data,
    initial_variables=dense_variables,
    report=REPORT,
    file_predictor="vig_jax.inference.detection:DetectionPredictor",
)
