"""The programs that benchmarks time: a model on random pixels, compiled for one device."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kernels_pallas.core.accuracy import rms_relative_error
from vig_jax.bench.macs import count_macs
from vig_jax.bench.throughput import Program
from vig_jax.config import RunConfig
from vig_jax.errors import ConfigError
from vig_jax.inference.predictor import predictor
from vig_jax.models import model_settings
from vig_jax.models.backbone import implementation_refusals
from vig_jax.models.from_config import model_from_config
from vig_jax.sharding.mesh import batch_sharded, make_mesh, replicated
from vig_jax.tasks.registry import make_task
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.state import init_state
from vig_jax.train.step import make_train_step
from vig_jax.weights.published import published_config

DROP_PATH = 0.2  # rate in training; its cost does not depend on the rate
INPUTS = 4  # distinct batches, used in rotation
TRAIN_MACS = 3  # forward passes' worth: forward, gradients by inputs, gradients by parameters


def benchmark_config(
    name: str,
    *,
    image_size: int,
    batch_size: int,
    dtype: str = "bfloat16",
    gla_implementation: str | None = None,
) -> RunConfig:
    """Returns the config of a published model at an image size, for measuring the bare update.

    Augmentation, mixing and clipping are off, so that only the models are compared.

    Raises:
        ConfigError: an unknown model, or a setting that does not fit it.
    """
    settings: dict[str, Any] = {
        "num_classes": 1000,
        "dtype": dtype,
        "gla_implementation": gla_implementation,
        "drop_path_rate": DROP_PATH,
        "merge_scale": None,
    }
    if "img_size" in model_settings(name):
        settings["img_size"] = image_size
    config = published_config(name, settings=settings, image_size=image_size)
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            config.data,
            rand_augment_layers=0,
            erase_probability=0.0,
            mixup_alpha=0.0,
            cutmix_alpha=0.0,
        ),
        optimizer=dataclasses.replace(config.optimizer, clip_norm=0.0),
        train=dataclasses.replace(config.train, batch_size=batch_size),
    )


def inference_program(config: RunConfig) -> Program:
    """Compiles `vig_jax.predictor` of a new model: `compiled(variables, pixels) -> logits`."""
    task = make_task(config, {}).task
    variables = jax.jit(task.init)(jax.random.key(0))
    run = predictor(task.model, variables, config.train.batch_size, config.data.image_size)
    return Program(run.compiled, [(run.variables, _pixels(config, seed)) for seed in range(INPUTS)])


def training_program(config: RunConfig) -> Program:
    """Compiles the training step of a new model: `compiled(state, batch) -> (state, metrics)`."""
    task, train = make_task(config, {}).task, config.train
    mesh = make_mesh(jax.local_devices()[:1])
    schedule = optax.constant_schedule(config.optimizer.base_lr)
    optimizer = make_optimizer(config.optimizer, schedule)

    def batch(seed: int) -> dict[str, jax.Array]:
        shape = (train.batch_size,)
        labels = jax.random.randint(jax.random.key(seed), shape, 0, config.model.num_classes or 1)
        return jax.device_put(
            {"image": _pixels(config, seed), "label": labels}, batch_sharded(mesh)
        )

    with jax.set_mesh(mesh):
        new_state = jax.jit(
            lambda: init_state(task, optimizer, seed=config.seed, ema=True),
            out_shardings=replicated(mesh),
        )
        step: Any = make_train_step(task, optimizer, schedule, ema_decay=train.ema_decay, mesh=mesh)
        inputs = [(batch(seed),) for seed in range(INPUTS)]
        with implementation_refusals(config.model.gla_implementation):
            state = new_state()
            return Program(step.lower(state, *inputs[0]).compile(), inputs, state)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """Agreement of a program's logits with those in float32, on random images.

    Attributes:
        rms: relative RMS error; infinite if any logit is not finite.
        argmax: share of images with the same largest logit.
    """

    rms: float
    argmax: float


def agreement(config: RunConfig, program: Program, *, images: int) -> Agreement:
    """Compares the logits of a program with those of the same model in float32.

    Args:
        config: of the program.
        program: from `inference_program(config)`.
        images: number of images to compare.
    """
    batch_size = config.train.batch_size
    wide_config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="float32"),
        train=dataclasses.replace(config.train, batch_size=min(images, batch_size)),
    )
    wide = inference_program(wide_config)
    logits, expected = [], []
    for seed in range(math.ceil(images / batch_size)):
        pixels = _pixels(config, seed)
        logits.append(np.asarray(program.compiled(program.inputs[0][0], pixels), np.float32))
        first = pixels[: wide_config.train.batch_size]
        expected.append(np.asarray(wide.compiled(wide.inputs[0][0], first), np.float32))
    finite = all(np.isfinite(part).all() for part in logits)
    mine, theirs = np.concatenate(logits)[:images], np.concatenate(expected)[:images]
    return Agreement(
        rms=rms_relative_error(mine, theirs) if finite else math.inf,
        argmax=float(np.mean(mine.argmax(-1) == theirs.argmax(-1))),
    )


def image_and_batch_sizes(
    image_sizes: Sequence[int], batch_sizes: Sequence[int]
) -> list[tuple[int, int]]:
    """Returns pairs of an image size and a batch size: one for all image sizes, or one for each.

    Raises:
        ConfigError: the numbers do not match, or a batch size is not positive.
    """
    if min(batch_sizes) < 1:
        raise ConfigError(f"--batch-size is {min(batch_sizes)}; it must be at least 1")
    if len(batch_sizes) == 1:
        batch_sizes = list(batch_sizes) * len(image_sizes)
    if len(batch_sizes) != len(image_sizes):
        raise ConfigError(
            f"--batch-size has {len(batch_sizes)} numbers and --image-size {len(image_sizes)}: "
            "give one batch size for all image sizes, or one for each"
        )
    return list(zip(image_sizes, batch_sizes, strict=True))


def flops_per_image(config: RunConfig, *, train: bool) -> int:
    """Returns the operations per image of inference or of a training step; two per MAC."""
    side = config.data.image_size
    model: Any = model_from_config(config.model)
    macs = count_macs(model, side, side).total
    return 2 * macs * (TRAIN_MACS if train else 1)


def _pixels(config: RunConfig, seed: int) -> jax.Array:
    side = config.data.image_size
    shape = (config.train.batch_size, side, side, 3)
    return jax.random.randint(jax.random.key(seed), shape, 0, 256, jnp.int32).astype(jnp.uint8)
