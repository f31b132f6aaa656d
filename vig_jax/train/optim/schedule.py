"""The learning rate of every update."""

import logging
import math

import jax
import jax.numpy as jnp
import optax

from vig_jax.config import OptimizerConfig
from vig_jax.train.calendar import in_steps

logger = logging.getLogger(__name__)


def warmup_cosine(
    config: OptimizerConfig, *, batch_size: int, steps_per_epoch: int, total: int
) -> optax.Schedule:
    """Linear warm-up, then half a cosine, per update.

    The rates of the config are per `lr_batch` images and scale with the batch size. Updates 0 and
    1 both use the first warm-up rate: the original code sets the rate after each update, from the
    index of that update (hustvl/ViG `classification/main.py`, timm's CosineLRScheduler). With
    accumulated gradients both it and we count updates, and scale by the images of an update.

    Args:
        config: rates and warm-up length.
        batch_size: global, of one update.
        steps_per_epoch: updates per epoch.
        total: updates of the run; one that is shorter than the warm-up never leaves it, which a
            warning says.

    Returns:
        A function of the 0-based update number, an int or an integer array, to the rate.

    Raises:
        ConfigError: the warm-up is negative or given in two units.
    """
    scale = batch_size / config.lr_batch
    base, start, end = (r * scale for r in (config.base_lr, config.warmup_lr, config.min_lr))
    warmup = in_steps(config, "warmup_", steps_per_epoch=steps_per_epoch, batch_size=batch_size)
    if total < warmup:
        logger.warning(
            "the run, %d updates, is shorter than its warm-up, %d: the learning rate will not "
            "reach its peak; lower config.optimizer.warmup_epochs",
            total,
            warmup,
        )

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.maximum(jnp.asarray(step) - 1, 0).astype(float)
        rising = start + t * ((base - start) / max(warmup, 1))
        # (1 + cos(pi (1 - left))) / 2 = sin(pi left / 2)^2, which float32 keeps exact near 0.
        left = jnp.clip((total - t) / max(total - warmup, 1), 0.0, 1.0)
        falling = end + (base - end) * jnp.sin(math.pi / 2 * left) ** 2
        return jnp.where(t < warmup, rising, falling)

    return schedule
