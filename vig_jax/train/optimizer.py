"""AdamW with decoupled weight decay, clipping and a schedule."""

from typing import Any

import jax
import optax

from vig_jax.config import OptimizerConfig


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everywhere but vectors (norm weights) and biases.

    A position embedding is decayed, as the original recipe does.
    """

    def decays(path: tuple[Any, ...], leaf: Any) -> bool:
        return leaf.ndim > 1 and path[-1].key != "bias"

    return jax.tree_util.tree_map_with_path(decays, params)


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule
) -> optax.GradientTransformation:
    """The transformation from gradients to parameter updates."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.adamw(
            schedule,
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        ),
    )
