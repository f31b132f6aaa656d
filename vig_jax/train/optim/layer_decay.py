"""A smaller learning rate for layers that are further from the head.

The rate of a layer is that of the head times decay ** (n + 1 - layer). The model assigns each
parameter to a layer; see `vig_jax.models.ParameterGroups`.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax

from vig_jax.errors import ConfigError


def scale_by_layer(
    decay: float, layer_ids: Callable[[Any], tuple[Any, int]]
) -> optax.GradientTransformation:
    """Returns the transformation that scales updates by decay ** (n + 1 - layer).

    It scales weight decay too, if it comes after it in a chain.

    Args:
        decay: the ratio of the rates of neighbouring layers.
        layer_ids: returns the layer of every parameter and n + 1, the layer of the head.

    Raises:
        ConfigError: `decay` is not above 0 and at most 1.
    """
    if not 0 < decay <= 1:
        raise ConfigError(
            f"config.optimizer.layer_decay={decay} must be above 0 and at most 1 (1: one rate for "
            "all layers)"
        )

    def scale(updates: optax.Updates, params: optax.Params | None) -> optax.Updates:
        layers, last = layer_ids(updates)
        return jax.tree.map(lambda x, layer: x * decay ** (last - layer), updates, layers)

    return optax.stateless(scale)
