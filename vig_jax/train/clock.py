"""The speed of training, and the share of the time spent waiting for data."""

import time
from collections.abc import Iterator
from typing import TypeVar

from vig_jax.config import RunConfig
from vig_jax.data.loader.workers import cpu_count

T = TypeVar("T")

_MUCH_WAITING = 0.1  # share of the time, from which a hint is given
_LONG_ENOUGH = 5.0  # seconds; shorter intervals are too noisy for a hint


class Clock:
    """Measures the speed of training since the last log step, without other work in between."""

    def __init__(self, config: RunConfig, step: int) -> None:
        self._config = config
        self._hint = ""
        self._hinted = False
        self.restart(step)

    def restart(self, step: int) -> None:
        """Begins a new interval at a step, for example after an evaluation."""
        self._since = (step, time.perf_counter())
        self._waited = 0.0  # seconds

    def timed(self, batches: Iterator[T]) -> Iterator[T]:
        """Yields the batches and counts the time until each is there as waiting for data."""
        begin = time.perf_counter()
        for batch in batches:
            self._waited += time.perf_counter() - begin
            yield batch
            begin = time.perf_counter()

    def speed(self, step: int) -> dict[str, float]:
        """Returns images per second and the share of waiting since the last call.

        The device has work queued ahead, so a wait that it does not notice hardly counts: the loop
        waits for the device afterwards.

        Returns:
            `train/img_per_s` and `train/data_wait`; empty if no step was made.
        """
        (first, then), waited = self._since, self._waited
        self.restart(step)
        if step == first:
            return {}
        seconds = self._since[1] - then
        share = waited / seconds
        if share > _MUCH_WAITING and seconds > _LONG_ENOUGH:
            self._hint = (
                f"hint: {share:.0%} of the time was spent waiting for data. More workers "
                f"(config.data.workers={self._config.data.workers}; this machine has {cpu_count()} "
                "CPUs) or files that decode faster (`vig data convert --resize-short`) help; "
                "`vig data benchmark` measures the cost of an image; see docs/data.md"
            )
        images = (step - first) * self._config.train.batch_size
        return {"train/img_per_s": images / seconds, "train/data_wait": share}

    def hint(self) -> str:
        """Returns advice if data is scarce, once; else an empty string."""
        if self._hinted or not self._hint:
            return ""
        self._hinted = True
        return self._hint
