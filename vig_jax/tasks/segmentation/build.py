"""Builds semantic segmentation from a config and the metadata of the data set."""

from collections.abc import Mapping
from typing import Any

from vig_jax.config import RunConfig, SegmentationConfig
from vig_jax.data.dataset import Dataset
from vig_jax.data.preprocess.masks import label_lookup
from vig_jax.data.preprocess.segmentation import SegmentationPreprocess
from vig_jax.errors import DataSetError
from vig_jax.models.from_config import segmenter_from_config, with_image_size, with_num_classes
from vig_jax.tasks.registry import TaskBundle, TaskEntry
from vig_jax.tasks.same_classes import check_same_classes
from vig_jax.tasks.segmentation.drawing import default_palette
from vig_jax.tasks.segmentation.evaluation import SegmentationEvaluation
from vig_jax.tasks.segmentation.preview import SegmentationPreview
from vig_jax.tasks.segmentation.report import REPORT
from vig_jax.tasks.segmentation.task import Segmentation
from vig_jax.weights.initial import dense_variables


def make_segmentation(config: RunConfig, metadata: Mapping[str, Any]) -> TaskBundle:
    """Builds semantic segmentation.

    Args:
        config: the run's settings.
        metadata: `class_names` by class, and optionally `palette` (a colour per class) and
            `raw_labels` (the label of each class in the mask files).

    Raises:
        ConfigError: settings that cannot work or do not fit the data set.
    """
    settings = config.task
    assert isinstance(settings, SegmentationConfig)
    names = tuple(metadata.get("class_names", ()))
    config = with_num_classes(with_image_size(config), names)
    classes = config.model.num_classes
    assert classes is not None
    palette = tuple(map(tuple, metadata.get("palette", ()))) or default_palette(classes)
    names += tuple(f"class {i}" for i in range(len(names), classes))
    lookup = label_lookup({**metadata, "class_names": names}, settings.reduce_zero_label)
    model = segmenter_from_config(config)
    task = Segmentation(model, config.data, settings)
    return TaskBundle(
        config=config,
        task=task,
        evaluation=SegmentationEvaluation(model, classes, config.data, settings, names, palette),
        train_preprocess=SegmentationPreprocess(config.data, settings, lookup, train=True),
        eval_preprocess=SegmentationPreprocess(config.data, settings, lookup, train=False),
        preview=SegmentationPreview(task, palette),
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
        DataSetError: the data set has other classes, the same in another order, or other label
            numbers in its masks. Of a model without class names only their number is compared.
    """
    metadata = dataset.info.metadata
    if trained.get("raw_labels") not in (None, metadata.get("raw_labels")):
        raise DataSetError(
            f"{dataset.info.name} has other label numbers in its masks than the data set that the "
            "model was trained on: evaluate on masks with those of training"
        )
    check_same_classes(
        dataset.info.name,
        metadata.get("class_names", ()),
        trained.get("class_names", ()),
        config,
        class_map,
        cure="Masks are compared by class number: name the classes in classes.txt as in training",
    )
    return dataset


ENTRY = TaskEntry(
    make=make_segmentation,
    match_data=match_data,
    initial_variables=dense_variables,
    report=REPORT,
    file_predictor="vig_jax.inference.segmentation:SegmentationPredictor",
)
