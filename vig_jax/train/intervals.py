"""The steps at which a run logs, evaluates and saves.

Lengths are given in epochs, steps (updates) or examples; everything else counts in steps.
"""

import dataclasses
import math

from vig_jax.config import OptimizerConfig, TrainConfig
from vig_jax.errors import ConfigError

_UNITS = ("epochs", "steps", "examples")


def in_steps(
    config: TrainConfig | OptimizerConfig,
    prefix: str,
    *,
    steps_per_epoch: int,
    batch_size: int,
) -> int:
    """Returns a length of the config in updates, whatever unit it is given in.

    Args:
        config: the group that has `<prefix>epochs`, `<prefix>steps` and `<prefix>examples`.
        prefix: of the three names, e.g. "eval_every_"; "" for the length of the run.
        steps_per_epoch: updates per epoch.
        batch_size: examples per update.

    Returns:
        Updates; a part of one counts whole for examples and is rounded for epochs. 0 if all three
        are 0.

    Raises:
        ConfigError: more than one is set, or one is negative.
    """
    group = "optimizer" if isinstance(config, OptimizerConfig) else "train"
    values = {f"config.{group}.{prefix}{unit}": getattr(config, prefix + unit) for unit in _UNITS}
    for name, value in values.items():
        if value < 0:
            raise ConfigError(f"{name}={value} is negative")
    given = [f"{name}={value}" for name, value in values.items() if value]
    if len(given) > 1:
        raise ConfigError(
            f"{' and '.join(given)} say the same thing twice: set one of them and the others to 0"
        )
    epochs, steps, examples = values.values()
    return round(epochs * steps_per_epoch) + steps + math.ceil(examples / batch_size)


@dataclasses.dataclass(frozen=True)
class Intervals:
    """The length of a run and its intervals, in steps. An interval of 0 means only at the end."""

    steps_per_epoch: int
    total: int  # updates of the whole run
    log_every: int
    eval_every: int
    save_every: int

    @classmethod
    def from_config(cls, config: TrainConfig, steps_per_epoch: int) -> "Intervals":
        """Returns the intervals of a run.

        Raises:
            ConfigError: a run without a step, a negative interval, or one given in two units.
        """
        if config.log_every_steps < 0:
            raise ConfigError(
                f"config.train.log_every_steps={config.log_every_steps} is negative; 0 means only "
                "at the end"
            )
        total, eval_every, save_every = (
            in_steps(config, prefix, steps_per_epoch=steps_per_epoch, batch_size=config.batch_size)
            for prefix in ("", "eval_every_", "checkpoint_every_")
        )
        if total < 1:
            raise ConfigError(
                "how long is the run? config.train.epochs, config.train.steps and "
                "config.train.examples are all 0; set one of them"
            )
        return cls(
            steps_per_epoch=steps_per_epoch,
            total=total,
            log_every=config.log_every_steps,
            eval_every=eval_every,
            save_every=save_every,
        )

    def log_due(self, step: int) -> bool:
        """Returns whether to log training metrics once `step` updates are done."""
        return self._due(self.log_every, step)

    def eval_due(self, step: int) -> bool:
        """Returns whether to evaluate; every evaluation is followed by a checkpoint."""
        return self._due(self.eval_every, step)

    def save_due(self, step: int) -> bool:
        """Returns whether to save, evaluated or not."""
        return self._due(self.save_every, step)

    def _due(self, interval: int, step: int) -> bool:
        return step == self.total or (interval > 0 and step > 0 and step % interval == 0)
