"""Writes metrics as TensorBoard files."""

from collections.abc import Mapping

import numpy as np
import tensorboardX
from jaxtyping import UInt8

from vig_jax.train.logging.loggers import LoggedRun


class TensorBoardLogger:
    """Writes into `tensorboard/` of the workdir; see `vig_jax.train.logging.loggers.Logger`.

    TensorBoard drops the steps that a resumed run repeats.
    """

    def __init__(self, run: LoggedRun) -> None:
        self._writer = tensorboardX.SummaryWriter(
            str(run.workdir / "tensorboard"), purge_step=run.start_step + 1
        )

    def scalars(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def image(self, name: str, pixels: UInt8[np.ndarray, "H W 3"]) -> None:
        self._writer.add_image(name, pixels, 0, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()
