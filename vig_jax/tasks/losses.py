"""Losses on logits."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from kernels_pallas.core.types import float32_or_wider


def log_probabilities(logits: Float[Array, "B classes"]) -> Float[Array, "B classes"]:
    """Returns the log-softmax, in float32 or wider."""
    return jax.nn.log_softmax(logits.astype(float32_or_wider(logits.dtype)))


def soft_cross_entropy(
    logits: Float[Array, "B classes"], targets: Float[Array, "B classes"]
) -> Float[Array, " B"]:
    """Returns the cross-entropy per example against a distribution over classes, in nats."""
    return -jnp.sum(targets * log_probabilities(logits), axis=-1)


def cross_entropy(
    logits: Float[Array, "B classes"], labels: Int[Array, " B"]
) -> Float[Array, " B"]:
    """Returns the cross-entropy per example against one class each, in nats."""
    return -jnp.take_along_axis(log_probabilities(logits), labels[:, None], axis=-1)[:, 0]
