"""Training metrics, kept on the device until they are logged."""

import math
from collections.abc import Mapping
from typing import Any

import jax

from vig_jax.errors import NonFiniteLossError
from vig_jax.sharding.mesh import max_in_flight

_NEWEST = ("lr",)  # logged as they are; other metrics are averaged over the updates


class DeviceMetrics:
    """Collects each update's scalars without waiting for the device, and averages them to log.

    Args:
        unlogged: the sums of a run that is resumed between two log steps, see `unlogged`.
    """

    def __init__(self, unlogged: Mapping[str, Any] | None = None) -> None:
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._ahead = max_in_flight()
        self._count: int = (unlogged or {}).get("count", 0)
        self._sums: dict[str, float] = dict((unlogged or {}).get("sums", {}))

    @property
    def unlogged(self) -> dict[str, Any]:
        """The number and the sums of the updates since the last call of `mean`, JSON values."""
        return {"count": self._count, "sums": dict(self._sums)}

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of update number `step`, counted from 1."""
        self._pending.append((step, metrics))
        if len(self._pending) > self._ahead:
            jax.block_until_ready(self._pending[-1 - self._ahead])

    def collect(self) -> None:
        """Waits for the device, checks all updates since the last call, and sums their metrics.

        Raises:
            NonFiniteLossError: names the first update whose loss or gradient norm is not finite.
        """
        pending, self._pending = jax.device_get(self._pending), []
        for step, metrics in pending:
            values = {name: float(x) for name, x in metrics.items()}
            bad = [f"{name} = {x}" for name, x in values.items() if not math.isfinite(x)]
            if bad:
                raise NonFiniteLossError(f"update {step}: {', '.join(bad)}")
            self._count += 1
            for name, value in values.items():
                before = 0.0 if name in _NEWEST else self._sums.get(name, 0.0)
                self._sums[name] = before + value

    def mean(self) -> dict[str, float]:
        """Returns the means over the updates since the last call, and starts again.

        Returns:
            `train/<name>` for each metric; the learning rate is the newest. Empty if there was no
            update.
        """
        count, sums = self._count, self._sums
        self._count, self._sums = 0, {}
        return {
            f"train/{name}": value if name in _NEWEST else value / count
            for name, value in sums.items()
        }
