"""Builds semantic segmentation from a config and the metadata of the data set."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from vig_jax.config import RunConfig, SegmentationConfig
from vig_jax.data.preprocess.segmentation import SegmentationPreprocess, make_lookup
from vig_jax.errors import ConfigError
from vig_jax.models.from_config import segmenter_from_config, with_image_size, with_num_classes
from vig_jax.tasks.registry import TaskBundle, TaskEntry
from vig_jax.tasks.segmentation.evaluation import SegmentationEvaluation
from vig_jax.tasks.segmentation.preview import SegmentationPreview
from vig_jax.tasks.segmentation.report import REPORT
from vig_jax.tasks.segmentation.task import Segmentation

_MOST_CLASSES = 255  # a mask is uint8, and 255 is ignored


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
    palette = tuple(map(tuple, metadata.get("palette", ()))) or _colours(classes)
    lookup = make_lookup(classes, settings.reduce_zero_label, metadata.get("raw_labels"))
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


def _colours(classes: int) -> tuple[tuple[int, int, int], ...]:
    """Returns a colour per class for data sets that have none."""
    from matplotlib import colormaps

    hues = colormaps["hsv"](np.linspace(0, 1, classes, endpoint=False))[:, :3]
    shades = np.array([1.0, 0.75, 0.5])[np.arange(classes) % 3, None]
    return tuple(map(tuple, np.rint(255 * hues * shades).astype(int).tolist()))


ENTRY = TaskEntry(make=make_segmentation, match_data=match_data, report=REPORT)
