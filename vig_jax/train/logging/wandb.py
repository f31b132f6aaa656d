"""Writes metrics to Weights & Biases; its variables WANDB_PROJECT, WANDB_MODE and so on apply."""

from collections.abc import Mapping

import numpy as np
import wandb
from jaxtyping import UInt8

from vig_jax.train.logging.identity import read_identity, store_identity
from vig_jax.train.logging.loggers import LoggedRun


class WandbLogger:
    """Writes a run of Weights & Biases; see `vig_jax.train.logging.loggers.Logger`.

    A resumed run continues it under the same identity, after the last step that it has there.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._wandb_run = wandb.init(
            id=read_identity(run.workdir, "wandb"),
            resume="allow",
            name=run.workdir.absolute().name,
            dir=str(run.workdir),
            config=dict(run.config),
        )
        store_identity(run.workdir, "wandb", self._wandb_run.id)

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        self._wandb_run.log(dict(metrics), step=step)

    def image(self, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        self._wandb_run.log({name: wandb.Image(pixels)}, step=0)

    def close(self) -> None:
        self._wandb_run.finish()
