"""Models from `config.model`."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from vig_jax.config import DetectionConfig, ModelConfig, RunConfig, SegmentationConfig
from vig_jax.errors import ConfigError
from vig_jax.models.backbone import Backbone
from vig_jax.models.detector import Detector, create_detector
from vig_jax.models.segmenter import Segmenter, create_segmenter
from vig_jax.models.variants import create_model


def model_from_config(config: ModelConfig) -> Backbone:
    """Returns the model; settings that are None keep the defaults of the variant.

    Raises:
        ConfigError: an unknown model, or a setting that it does not have.
    """
    given = _given(config)
    return create_model(given.pop("name"), **given)


def segmenter_from_config(config: RunConfig) -> Segmenter:
    """Returns the segmenter of `config.model` and `config.task`.

    Raises:
        ConfigError: an unknown model, or a setting that it does not have.
    """
    task = config.task
    assert isinstance(task, SegmentationConfig)
    given = _given(config.model)
    return create_segmenter(
        given.pop("name"),
        channels=task.channels,
        aux_channels=task.aux_channels,
        dropout=task.dropout,
        norm_last=task.norm_last,
        **given,
    )


def detector_from_config(config: RunConfig) -> Detector:
    """Returns the detector of `config.model` and `config.task`.

    Raises:
        ConfigError: an unknown model, or a setting that it does not have.
    """
    task = config.task
    assert isinstance(task, DetectionConfig)
    given = _given(config.model)
    return create_detector(
        given.pop("name"),
        masks=task.masks,
        channels=task.channels,
        box_channels=task.box_channels,
        anchor_scale=task.anchor_scale,
        anchor_ratios=task.anchor_ratios,
        sampling_ratio=task.sampling_ratio,
        proposals=task.proposals,
        level_proposals=task.eval_level_proposals,
        rpn_nms=task.rpn_nms,
        score_threshold=task.score_threshold,
        nms=task.nms,
        detections=task.detections,
        **given,
    )


def _given(config: ModelConfig) -> dict[str, Any]:
    """Returns the settings that are not None, for the function that creates the model."""
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    if not config.remat:  # the default of all models, and not a setting of each
        del given["remat"]
    return given | {"dtype": jnp.dtype(config.dtype)}


def with_image_size(config: RunConfig) -> RunConfig:
    """Returns the config with a position embedding for `config.data.image_size`.

    Nothing changes if `config.model.img_size` is set, or for models without a position embedding.
    """
    model, side = config.model, config.data.image_size
    if model.img_size is not None or create_model(model.name).native_size in (None, side):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(model, img_size=side))


def with_num_classes(config: RunConfig, class_names: Sequence[str]) -> RunConfig:
    """Returns the config with the number of classes filled in from the data set.

    Args:
        config: `config.model.num_classes` is None for the number of the data set's classes.
        class_names: of the data set; empty if it names none.

    Raises:
        ConfigError: the number is unknown, or smaller than that of the data set.
    """
    classes = config.model.num_classes
    if classes is None and not class_names:
        raise ConfigError(
            "config.model.num_classes is unset, and the data set names no classes: set it"
        )
    if classes is not None and classes < len(class_names):
        raise ConfigError(
            f"config.model.num_classes is {classes}, but the data set has {len(class_names)} "
            "classes: unset it, or set it to at least that"
        )
    model = dataclasses.replace(config.model, num_classes=classes or len(class_names))
    return dataclasses.replace(config, model=model)
