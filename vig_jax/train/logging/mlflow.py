"""Writes metrics to MLflow; its variables MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME apply."""

from collections.abc import Iterator, Mapping
from typing import Any

import mlflow
import numpy as np
from jaxtyping import UInt8

from vig_jax.train.logging.identity import read_identity, store_identity
from vig_jax.train.logging.loggers import LoggedRun

_PARAMETERS = 100  # the most that MLflow takes at once


class MlflowLogger:
    """Writes a run of MLflow; see `vig_jax.train.logging.loggers.Logger`.

    A resumed run continues it under the same identity. Points that it has already are left out.
    """

    def __init__(self, run: LoggedRun) -> None:
        identity = read_identity(run.workdir, "mlflow")
        name = run.workdir.absolute().name
        self._identity = mlflow.start_run(run_id=identity, run_name=name).info.run_id
        self._resumed = identity is not None
        self._last_steps: dict[str, int] = {}
        if identity is None:
            store_identity(run.workdir, "mlflow", self._identity)
            parameters = list(_flat(run.config))
            for start in range(0, len(parameters), _PARAMETERS):
                mlflow.log_params(dict(parameters[start : start + _PARAMETERS]))

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        new = {name: value for name, value in metrics.items() if step > self._last_step(name)}
        if new:
            mlflow.log_metrics(new, step=step)

    def image(self, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        mlflow.log_image(pixels, f"{name}.png")

    def close(self) -> None:
        mlflow.end_run()

    def _last_step(self, name: str) -> int:
        """Returns the last step of a metric that was logged before the run was resumed."""
        if name not in self._last_steps:
            client = mlflow.MlflowClient()
            known = client.get_metric_history(self._identity, name) if self._resumed else []
            self._last_steps[name] = max((point.step for point in known), default=-1)
        return self._last_steps[name]


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the settings with dotted names."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value
