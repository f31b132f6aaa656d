"""Learning-rate schedules."""

import logging
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vig_jax.config import OptimizerConfig
from vig_jax.errors import ConfigError
from vig_jax.train.intervals import in_steps

logger = logging.getLogger(__name__)

FALL = 0.1
"""The factor on the rate at each milestone of the schedule "step"."""


def make_schedule(
    config: OptimizerConfig, *, batch_size: int, steps_per_epoch: int, total: int
) -> optax.Schedule:
    """Returns the learning rate per update: a linear warm-up, then the decay `config.schedule`.

    The rates of the config are per `lr_batch` images and scale with the batch size. With gradient
    accumulation the schedule counts updates, and scales by the images of an update.

    Args:
        config: rates and length of the warm-up.
        batch_size: global, of one update.
        steps_per_epoch: updates per epoch.
        total: updates of the run. If it is shorter than the warm-up, a warning is logged.

    Returns:
        A function from the 0-based update number, an int or an integer array, to the rate.

    Raises:
        ConfigError: the warm-up is negative or given in two units, or the milestones do not go
            with the schedule.
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
    if (config.schedule == "step") != bool(config.milestones):
        raise ConfigError(
            f"config.optimizer.milestones={config.milestones}, and the schedule is "
            f"{config.schedule!r}: set the milestones for 'step', for example (8, 11), and leave "
            "them empty for others"
        )
    milestones = tuple(epoch * steps_per_epoch for epoch in config.milestones)
    kinds = {
        "cosine": _cosine,
        "poly": _poly,
        "poly_from_start": _poly_from_start,
        "step": _step,
    }
    rates = _Rates(base, start, end, config.power, warmup, total, milestones)
    return kinds[config.schedule](rates)


class _Rates(NamedTuple):
    """Learning rates of a run.

    Attributes:
        base: the peak.
        start: the first of the warm-up.
        end: the last of the decay.
        power: of the polynomial.
        warmup: updates.
        total: updates.
        milestones: updates at which the rate falls.
    """

    base: float
    start: float
    end: float
    power: float
    warmup: int
    total: int
    milestones: tuple[int, ...]


def _cosine(rates: _Rates) -> optax.Schedule:
    """Returns a linear warm-up followed by half a cosine.

    Updates 0 and 1 both use the first warm-up rate: the original code sets the rate after each
    update, from the index of that update (hustvl/ViG `classification/main.py`, timm's
    CosineLRScheduler).
    """
    base, start, end, _, warmup, total, _ = rates

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.maximum(jnp.asarray(step) - 1, 0).astype(float)
        rising = start + t * ((base - start) / max(warmup, 1))
        # (1 + cos(pi (1 - left))) / 2 = sin(pi left / 2)^2, which float32 keeps exact near 0.
        left = jnp.clip((total - t) / max(total - warmup, 1), 0.0, 1.0)
        falling = end + (base - end) * jnp.sin(math.pi / 2 * left) ** 2
        return jnp.where(t < warmup, rising, falling)

    return schedule


def _poly(rates: _Rates) -> optax.Schedule:
    """Returns a linear warm-up that reaches the peak at its last update, then a polynomial.

    The polynomial begins after the warm-up and is `end` at the last update (mmengine's LinearLR and
    PolyLR, as mmsegmentation 1.x combines them).
    """
    base, start, end, power, warmup, total, _ = rates

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step).astype(float)
        rising = start + t * ((base - start) / max(warmup - 1, 1))
        left = jnp.clip(1 - (t - warmup) / max(total - warmup - 1, 1), 0.0, 1.0)
        return jnp.where(t < warmup, rising, end + (base - end) * left**power)

    return schedule


def _step(rates: _Rates) -> optax.Schedule:
    """Returns a linear warm-up as in `_poly`, and a tenth of the rate from each milestone on.

    `end` is not used (mmengine's LinearLR and MultiStepLR, as mmdetection 3.x combines them).
    """

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step)
        rising = (t / max(rates.warmup - 1, 1)).astype(float)
        rising = rates.start + jnp.minimum(rising, 1) * (rates.base - rates.start)
        peak = jnp.where(t < rates.warmup, rising, rates.base)
        falls = sum((t >= milestone for milestone in rates.milestones), jnp.zeros_like(t))
        return peak * FALL ** falls.astype(float)

    return schedule


def _poly_from_start(rates: _Rates) -> optax.Schedule:
    """Returns a polynomial over the whole run, scaled down linearly during the warm-up.

    The last update has the rate of one update before the end (mmcv 1.x, as in Vim and Vision-RWKV).
    """
    base, start, end, power, warmup, total, _ = rates

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        t = jnp.asarray(step).astype(float)
        regular = end + (base - end) * jnp.clip(1 - t / total, 0.0, 1.0) ** power
        missing = jnp.clip(1 - t / max(warmup, 1), 0.0, 1.0)
        return regular * (1 - missing * (1 - start / base)) if warmup and base else regular

    return schedule
