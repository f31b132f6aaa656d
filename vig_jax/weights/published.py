"""The configuration that the published weights are evaluated with."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from vig_jax.config import ModelConfig, RunConfig, parse, recipes
from vig_jax.models import ViG, create_model

# Upstream's evaluation of the plain models halves the merged scan twice.
_EVAL_MERGE_SCALE = 0.25


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
    model: dict[str, Any] = {
        field.name: False if field.type is bool else None
        for field in dataclasses.fields(ModelConfig)
    }
    model |= {"name": model_name, "dtype": "float32"}
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
    values["train"]["compilation_cache"] = ""
    return parse(values)
