"""At which steps a run looks, evaluates and saves."""

import dataclasses

from vig_jax.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Calendar:
    """What is due once `step` updates are done. An interval of 0 means only at the end."""

    steps_per_epoch: int
    total: int  # updates of the whole run
    log_every: int
    eval_every: int
    save_every: int

    @classmethod
    def of(cls, config: TrainConfig, steps_per_epoch: int) -> "Calendar":
        """The calendar of a run.

        Raises:
            ValueError: a run without a step, or a negative interval.
        """
        calendar = cls(
            steps_per_epoch=steps_per_epoch,
            total=config.epochs * steps_per_epoch,
            log_every=config.log_every_steps,
            eval_every=config.eval_every_epochs * steps_per_epoch,
            save_every=config.checkpoint_every_steps,
        )
        if calendar.total < 1:
            raise ValueError(f"config.train.epochs is {config.epochs}; at least 1 is wanted")
        for name in ("log_every_steps", "eval_every_epochs", "checkpoint_every_steps"):
            if getattr(config, name) < 0:
                raise ValueError(f"config.train.{name} is negative; 0 means only at the end")
        return calendar

    def log_due(self, step: int) -> bool:
        """Whether to write down training metrics."""
        return self._due(self.log_every, step)

    def eval_due(self, step: int) -> bool:
        """Whether to evaluate; every evaluation is followed by a checkpoint."""
        return self._due(self.eval_every, step)

    def save_due(self, step: int) -> bool:
        """Whether to save, evaluated or not."""
        return self._due(self.save_every, step)

    def _due(self, interval: int, step: int) -> bool:
        return step == self.total or (interval > 0 and step > 0 and step % interval == 0)
