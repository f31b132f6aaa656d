"""The configurations that weights from files are evaluated with."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from vig_jax.config import (
    DetectionConfig,
    ModelConfig,
    RunConfig,
    SegmentationConfig,
    parse,
    recipes,
)
from vig_jax.errors import ConfigError
from vig_jax.models import ViG, create_model
from vig_jax.text import did_you_mean
from vig_jax.weights.dense import BACKBONE
from vig_jax.weights.fit import WeightFile
from vig_jax.weights.fit_detector import sizes_of as detector_sizes
from vig_jax.weights.fit_segmenter import sizes_of

# Upstream's evaluation of the plain models halves the merged scan twice.
_EVAL_MERGE_SCALE = 0.25
_ADE20K_CLASSES = 150
_PIXELS = ("image_size", "mean", "std")  # of config.data, in our files of segmenters


def published_config(
    model_name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> RunConfig:
    """Returns the config that published weights are evaluated with.

    Args:
        model_name: one of `vig_jax.list_models()`.
        settings: keys of config.model that differ from the published model.
        image_size: side of the images in pixels, or height and width; None means the size that the
            model is made for.

    Raises:
        ConfigError: an unknown model, or a setting that config.model does not have.
    """
    published = create_model(model_name)
    model = _model_values(model_name)
    if isinstance(published, ViG):
        model["merge_scale"] = _EVAL_MERGE_SCALE
    model |= settings or {}
    values = recipes.imagenet(model_name).to_dict() | {"model": model}
    recipe_size = values["data"]["image_size"]
    if isinstance(image_size, tuple):
        values["data"]["eval_size"], image_size = image_size, None
    values["data"]["image_size"] = (
        image_size or model["img_size"] or published.native_size or recipe_size
    )
    model["img_size"] = model["img_size"] or published.native_size  # whatever the images' size
    values["train"]["compilation_cache"] = ""
    return parse(values)


def segmenter_config(
    file: WeightFile,
    model_name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> RunConfig:
    """Returns the config that the weights of a segmenter are evaluated with.

    The sizes of the heads are those of the file, and so are the settings of the task if the file
    has them. Else they are those of ADE20K's recipe; label 0 means no class if there are 150.

    Args:
        file: with the state dict of a segmenter.
        model_name: the backbone, one of `vig_jax.list_models()`.
        settings: keys of config.model or config.task that differ.
        image_size: side of the sliding windows in pixels; None means that of the position
            embedding, or for models without one that of the file or the recipe.

    Raises:
        ConfigError: an unknown model, a setting that neither section has, or windows that are not
            square.
    """
    if isinstance(image_size, tuple):
        raise ConfigError(
            f"the image size {image_size[0]}x{image_size[1]} is not square; a segmenter slides "
            "square windows over images of any size: give one side"
        )
    settings = dict(settings or {})
    of_task = _settings_of_task(settings, SegmentationConfig)
    sizes = sizes_of(file.state_dict)
    classes = sizes.pop("num_classes", None)
    recipe = recipes.ade20k(model_name).to_dict()
    model = _model_values(model_name) | {"num_classes": classes}
    model |= {key: value for key, value in settings.items() if key not in of_task}
    data = recipe["data"] | {
        key: value for key, value in file.config.get("data", {}).items() if key in _PIXELS
    }
    side = image_size or model["img_size"] or _window(file, model) or data["image_size"]
    if isinstance(create_model(model_name), ViG):
        model["img_size"] = side
    task = recipe["task"] | {
        "reduce_zero_label": classes == _ADE20K_CLASSES,
        "resize_scale": (4 * side, side),
        "eval_stride": max(1, 2 * side // 3),
    }
    stored = file.config.get("task", {})
    task |= {key: value for key, value in stored.items() if key in of_task} | sizes
    task |= {key: value for key, value in settings.items() if key in of_task}
    recipe["data"] = data | {"image_size": side}
    recipe["train"]["compilation_cache"] = ""
    return parse(recipe | {"model": model, "task": task})


def detector_config(
    file: WeightFile, model_name: str, *, settings: Mapping[str, Any] | None = None
) -> RunConfig:
    """Returns the config that the weights of a detector are evaluated with.

    The sizes of the heads are those of the file, and so are the settings of the task if the file
    has them. Else they are those of COCO's recipe.

    Args:
        file: with the state dict of a detector.
        model_name: the backbone, one of `vig_jax.list_models()`.
        settings: keys of config.model or config.task that differ.

    Raises:
        ConfigError: an unknown model, or a setting that neither section has.
    """
    settings = dict(settings or {})
    of_task = _settings_of_task(settings, DetectionConfig)
    sizes = detector_sizes(file.state_dict)
    recipe = recipes.coco(model_name).to_dict()
    model = _model_values(model_name) | {"num_classes": sizes.pop("num_classes", None)}
    model |= {key: value for key, value in settings.items() if key not in of_task}
    if isinstance(create_model(model_name), ViG) and model["img_size"] is None:
        model["img_size"] = _window(file, model)
    stored = file.config.get("task", {})
    task = recipe["task"] | {key: value for key, value in stored.items() if key in of_task} | sizes
    task |= {key: value for key, value in settings.items() if key in of_task}
    pixels = {key: x for key, x in file.config.get("data", {}).items() if key in _PIXELS}
    recipe["data"] |= pixels
    recipe["train"]["compilation_cache"] = ""
    return parse(recipe | {"model": model, "task": task})


def _settings_of_task(settings: Mapping[str, Any], section: type) -> set[str]:
    """Returns the names of the settings of a task that config.model does not have.

    Raises:
        ConfigError: a setting is in neither section.
    """
    of_model = _names(ModelConfig)
    of_task = _names(section) - of_model
    for key in settings.keys() - of_model - of_task:
        hint = did_you_mean(key, sorted(of_model | of_task))
        raise ConfigError(f"neither config.model nor config.task has a setting {key!r}; {hint}")
    return of_task


def _window(file: WeightFile, model: Mapping[str, Any]) -> int | None:
    """Returns the image side that the position embedding of a file is made for, if it has one."""
    table = file.state_dict.get(f"{BACKBONE}pos_embed")
    if table is None or table.ndim != 3:
        return None
    patch: int = model["patch_size"] or ViG.patch_size
    return math.isqrt(table.shape[1]) * patch


def _model_values(model_name: str) -> dict[str, Any]:
    """Returns the values of config.model that keep a model's defaults, in float32."""
    unset = {
        field.name: False if field.type is bool else None
        for field in dataclasses.fields(ModelConfig)
    }
    return unset | {"name": model_name, "dtype": "float32"}


def _names(section: type) -> set[str]:
    return {field.name for field in dataclasses.fields(section)}
