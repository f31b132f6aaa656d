"""Training metrics, kept on the device until they are logged."""

import math

import jax

from vig_jax.errors import NonFiniteLossError
from vig_jax.sharding.mesh import max_in_flight


class DeviceMetrics:
    """Collects each step's scalars without waiting for the device, and checks them later."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._ahead = max_in_flight()

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of update number `step`, counted from 1."""
        self._pending.append((step, metrics))
        if len(self._pending) > self._ahead:
            jax.block_until_ready(self._pending[-1 - self._ahead])

    def take(self) -> dict[str, float]:
        """Waits for the device, checks all steps since the last call, returns the newest values.

        Returns:
            The metrics of the newest step, as `train/<name>`; empty if there is no new step.

        Raises:
            NonFiniteLossError: names the first step whose loss or gradient norm is not finite.
        """
        pending, self._pending = jax.device_get(self._pending), []
        for step, metrics in pending:
            bad = {name: float(x) for name, x in metrics.items() if not math.isfinite(x)}
            if bad:
                values = ", ".join(f"{name} = {value}" for name, value in bad.items())
                raise NonFiniteLossError(f"update {step}: {values}")
        return {f"train/{k}": float(x) for k, x in pending[-1][1].items()} if pending else {}
