"""Learning-rate schedules."""

import logging
import math

import jax
import jax.numpy as jnp
import optax

from vig_jax.config import OptimizerConfig
from vig_jax.train.intervals import in_steps

logger = logging.getLogger(__name__)


def warmup_cosine(
    config: OptimizerConfig, *, batch_size: int, steps_per_epoch: int, total: int
) -> optax.Schedule:
    """Returns a schedule of linear warm-up followed by half a cosine, per update.

    The rates of the config are per `lr_batch` images and scale with the batch size. Updates 0 and
    1 both use the first warm-up rate: the original code sets the rate after each update, from the
    index of that update (hustvl/ViG `classification/main.py`, timm's CosineLRScheduler). With
    gradient accumulation the schedule counts updates, and scales by the images of an update, as
    the original does.

    Args:
        config: rates and length of the warm-up.
        batch_size: global, of one update.
        steps_per_epoch: updates per epoch.
        total: updates of the run. If it is shorter than the warm-up, a warning is logged.

    Returns:
        A function from the 0-based update number, an int or an integer array, to the rate.

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
