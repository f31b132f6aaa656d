"""Models that are ready to be timed, and how ours become such candidates."""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import jax

from kernels_pallas.core.timing import candidate
from vig_jax.bench.latency import HostCall
from vig_jax.bench.programs import (
    agreement,
    benchmark_config,
    flops_per_image,
    inference_program,
    training_program,
)
from vig_jax.config import RunConfig
from vig_jax.errors import ConfigError

# bfloat16 against float32, relative. The loss of a fresh model hardly depends on anything.
ALLOWED_ERRORS = {"logits": 2e-2, "loss": 1e-3, "grad_norm": 2e-2}
_CHECKED_IMAGES = 8
_CHECKED_SIDE = 128  # pixels, of dense tasks


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A model that is ready to be timed.

    Attributes:
        name: of the model.
        variant: way in which it runs, for example "eager".
        parameters: number of parameters.
        memory_bytes: memory while it runs, including parameters and one batch of pixels.
        flops: operations for one image.
        run: see `kernels_pallas.core.timing.Candidate`.
        host: the steps of one call with pixels and results on the host; None in training.
    """

    name: str
    variant: str
    parameters: int
    memory_bytes: int
    flops: int
    run: Callable[[int], None]
    host: HostCall | None = None


class WrongResultError(RuntimeError):
    """A model computes wrong results, so its speed is meaningless."""


def ours(
    name: str,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    train: bool,
    task: str = "classification",
    check: bool = True,
) -> Candidate:
    """Prepares our model in bfloat16: inference as in `vig benchmark`, or the step of `train.py`.

    Args:
        name: of the model.
        image_size: side in pixels, or height and width.
        batch_size: images per call.
        train: prepare a training step.
        task: see `vig_jax.bench.programs.benchmark_config`.
        check: compare the results with those of float32.

    Raises:
        WrongResultError: the logits, or the loss or gradient norm of the first step, are not finite
            or differ from those of float32. Dense tasks are compared at 128 pixels; their training
            steps must be finite only.
        ConfigError: the model is unknown, or refuses the image size.
    """
    config = benchmark_config(name, image_size=image_size, batch_size=batch_size, task=task)
    program = training_program(config) if train else inference_program(config)
    call = program.calls()
    # A dense model in float32 at full size would compile for minutes, only for this check.
    dense = task != "classification"
    errors: Mapping[str, Any] = {}
    if check and train:
        _, (metrics,) = call()
        errors = {"loss": 0 * metrics["loss"]} if dense else _step_errors(config, metrics)
    elif check:
        checked = config
        if dense:
            checked = benchmark_config(name, image_size=_CHECKED_SIDE, batch_size=2, task=task)
        images = min(_CHECKED_IMAGES, checked.train.batch_size)
        errors = {"logits": agreement(checked, program, images=images).rms}
    for what, error in errors.items():
        if not error <= ALLOWED_ERRORS[what]:  # also true for NaN
            raise WrongResultError(
                f"{what} of bfloat16 off by {error:.1e} (relative, against float32), allowed "
                f"{ALLOWED_ERRORS[what]:.0e}"
            )
    params = program.state.params if program.state else program.constants or program.inputs[0][0]
    return Candidate(
        name=name,
        variant="vig_jax",
        parameters=sum(leaf.size for leaf in jax.tree.leaves(params)),
        memory_bytes=program.bytes,
        flops=flops_per_image(config, train=train),
        run=candidate(call),
        host=program.host_call(),
    )


def import_peers(module: str, *, without: str = "") -> ModuleType:
    """Imports a module of this package that needs PyTorch and timm.

    Args:
        module: its name.
        without: what can be done without them, for the message.

    Raises:
        ConfigError: one of them is not installed.
    """
    try:
        return importlib.import_module(f"benchmarks.{module}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] not in ("torch", "torchvision", "timm"):
            raise
        raise ConfigError(
            f"{error.name} is not installed, and the peers need PyTorch and timm: pip install "
            f"torch timm{without}"
        ) from error


def _step_errors(config: RunConfig, metrics: Mapping[str, jax.Array]) -> dict[str, float]:
    """Returns the relative errors of the first step against one in float32 on the same batch."""
    wide = dataclasses.replace(config.model, dtype="float32", remat=True)
    _, (expected,) = training_program(dataclasses.replace(config, model=wide)).calls()()
    return {
        what: float(abs(metrics[what] - expected[what]) / expected[what])
        for what in ("loss", "grad_norm")
    }
