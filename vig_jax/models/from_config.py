"""Models from `config.model`."""

import dataclasses

import jax.numpy as jnp

from vig_jax.config import ModelConfig, RunConfig
from vig_jax.models.variants import create_model
from vig_jax.models.vig import ViG
from vig_jax.models.vig_h import ViGH


def model_from_config(config: ModelConfig) -> ViG | ViGH:
    """Returns the model; settings that are None keep the defaults of the variant.

    Raises:
        ConfigError: an unknown model, or a setting that it does not have.
    """
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    return create_model(given.pop("name"), **(given | {"dtype": jnp.dtype(config.dtype)}))


def with_image_size(config: RunConfig) -> RunConfig:
    """Returns the config with a position embedding for `config.data.image_size`.

    Nothing changes if `config.model.img_size` is set, or for models without a position embedding.
    """
    model, side = config.model, config.data.image_size
    if model.img_size is not None or create_model(model.name).native_size in (None, side):
        return config
    return dataclasses.replace(config, model=dataclasses.replace(model, img_size=side))
