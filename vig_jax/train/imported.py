"""Weight files as if a run of ours had trained them."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vig_jax.config import ModelConfig, RunConfig, parse, recipes
from vig_jax.data.datasets.imagenet import class_names
from vig_jax.errors import WeightsError
from vig_jax.models import ViG, create_model
from vig_jax.tasks.protocol import Params
from vig_jax.train.checkpoint import Restored
from vig_jax.weights.load import WeightFile, Weights, fit, read_weight_file

_EVAL_MERGE_SCALE = 0.25  # of upstream's plain models: its evaluation halves the merged scan twice
_NO_SIZES = {
    "name",
    "num_classes",
    "drop_path_rate",
    "remat",
    "dtype",
    "gla_implementation",
    "merge_scale",
}


def restore_weights(
    path: str | Path,
    model_name: str,
    *,
    ema: bool | None = None,
    image_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Restored:
    """A weight file, ready for inference as upstream does it.

    The plain models get upstream's `merge_scale` of evaluation, so that published numbers come out
    to the last digit.

    Args:
        path: as for `vig_jax.load_weights`.
        model_name: one of `vig_jax.list_models()`.
        ema: as for `vig_jax.load_weights`.
        image_size: side of the images, pixels; None: what the model is made for.
        settings: of the model, where they are not the published ones; the keys of config.model.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a setting is wrong, or (WeightsError) the file cannot be read or does not fit.
    """
    file = read_weight_file(path, ema=ema)
    return restore_file(file, path, model_name, image_size=image_size, settings=settings)


def restore_file(
    file: WeightFile,
    path: str | Path,
    model_name: str,
    *,
    image_size: int | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Restored:
    """`restore_weights` of a file that is read already; the arguments are the same."""
    config = published_config(model_name, settings=settings, image_size=image_size)
    weights = fit_file(file, path, config.model)
    classes = weights.num_classes
    names = class_names()
    return Restored(
        config=dataclasses.replace(
            config, model=dataclasses.replace(config.model, num_classes=classes)
        ),
        variables={"params": weights.params},
        step=0,
        metadata={"class_names": names if classes == len(names) else ()},
        ema=file.averaged,
        description="; ".join((f"weights from {origin(file, path)}", *weights.notes)),
    )


def published_config(
    model_name: str,
    *,
    settings: Mapping[str, Any] | None = None,
    image_size: int | None = None,
) -> RunConfig:
    """The config that published weights are evaluated with; the arguments as in `restore_weights`.

    Raises:
        ValueError: an unknown model, or a setting that config.model does not have.
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
    recipe_side = values["data"]["image_size"]
    side = image_size or model["img_size"] or getattr(published, "img_size", recipe_side)
    values["data"]["image_size"] = side
    values["train"]["compilation_cache"] = ""
    return parse(values)


def initial_params(config: RunConfig) -> tuple[Params, str]:
    """The parameters that `config.init_weights` names, float32, and a line about them for people.

    A head for another number of classes is drawn anew, by the run's seed.

    Args:
        config: resolved: the number of classes is known.

    Raises:
        WeightsError: the file is missing, cannot be read or does not fit the model.
    """
    path = config.init_weights
    assert path is not None
    try:
        file = read_weight_file(path)
    except FileNotFoundError as error:
        raise WeightsError(f"config.init_weights={path}: {error}") from error
    weights = fit_file(file, path, config.model, seed=config.seed)
    return float32(weights.params), "; ".join(
        (f"starting from {origin(file, path)}", *weights.notes)
    )


def origin(file: WeightFile, path: str | Path) -> str:
    """Which weights of which file, for people."""
    return f"{path}, {file.section}" if file.section else str(path)


def float32(params: Params) -> Params:
    """The parameters as runs have them."""
    return jax.tree.map(lambda x: np.asarray(x, np.float32), params)


def fit_file(file: WeightFile, path: str | Path, model: ModelConfig, seed: int = 0) -> Weights:
    """The weights of a file for a model of the config."""
    sizes = {
        name: value
        for name, value in dataclasses.asdict(model).items()
        if name not in _NO_SIZES and value is not None
    }
    try:
        weights = fit(
            file.state_dict,
            model.name,
            num_classes=model.num_classes,
            overrides=sizes,
            seed=seed,
        )
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return dataclasses.replace(weights, notes=file.notes + weights.notes)
