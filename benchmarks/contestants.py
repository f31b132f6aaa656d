"""What takes part in a comparison, and our models as such."""

import dataclasses
from collections.abc import Callable

import jax
import numpy as np

from kernels_pallas.benchmarks.timing import contestant
from kernels_pallas.testing import rms_relative_error
from vig_jax.cli.programs import (
    benchmark_config,
    flops_per_image,
    inference_program,
    training_program,
)
from vig_jax.config import RunConfig
from vig_jax.evaluation.throughput import Program

ALLOWED_ERROR = 2e-2  # of bfloat16 logits against float32 ones, relative RMS
_CHECKED_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Contestant:
    """A model that is ready to be timed.

    Attributes:
        name: of the model.
        variant: how it is run.
        parameters: their number.
        memory_bytes: that it takes while it runs, parameters and one batch of pixels included.
        flops: of one image.
        run: see `kernels_pallas.benchmarks.timing.Contestant`.
    """

    name: str
    variant: str
    parameters: int
    memory_bytes: int
    flops: int
    run: Callable[[int], None]


class WrongResultError(RuntimeError):
    """A model computes something else than it should: its speed is worth nothing."""


def ours(name: str, *, image_size: int, batch_size: int, train: bool) -> Contestant:
    """Our model in bfloat16, through `vig_jax.predictor` or the training step of `train.py`.

    Raises:
        WrongResultError: logits that are not finite or not those of float32.
        ValueError: an unknown model, or a size that it refuses.
    """
    config = benchmark_config(name, image_size=image_size, batch_size=batch_size)
    inference = None if train else inference_program(config)
    _check_logits(config, inference)
    program = inference or training_program(config)
    call = program.calls()
    if train:
        _, (metrics,) = call()
        if not np.isfinite(metrics["loss"]):
            raise WrongResultError(f"{name}: the loss of a training step is {metrics['loss']}")
    params = program.state.params if program.state else program.inputs[0][0]
    return Contestant(
        name=name,
        variant="vig_jax",
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        memory_bytes=program.bytes,
        flops=flops_per_image(config, train=train),
        run=contestant(call),
    )


def _check_logits(config: RunConfig, program: Program | None) -> None:
    """Compares the logits of the first images, of the program or one for them alone."""
    count = min(_CHECKED_IMAGES, config.train.batch_size)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, batch_size=count))
    program = program or inference_program(config)
    variables, pixels = program.inputs[0]
    logits = program.compiled(variables, pixels)
    wide = inference_program(
        dataclasses.replace(config, model=dataclasses.replace(config.model, dtype="float32"))
    )
    expected = wide.compiled(wide.inputs[0][0], pixels[:count])
    error = rms_relative_error(logits[:count], expected)
    if not (error <= ALLOWED_ERROR and np.isfinite(logits).all()):
        raise WrongResultError(
            f"{config.model.name} at {config.data.image_size} pixels: bfloat16 logits are off by "
            f"{error:.1e} (relative RMS against float32), allowed {ALLOWED_ERROR:.0e}"
        )
