"""The programs that benchmarks time: a model on random pixels, compiled for one device.

Tasks differ in what inference returns and in the targets of training.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from kernels_pallas.core.accuracy import rms_relative_error
from vig_jax.bench.batches import random_batch, random_pixels, size_of
from vig_jax.bench.macs import count_macs
from vig_jax.bench.throughput import Program
from vig_jax.config import DetectionConfig, RunConfig, SegmentationConfig
from vig_jax.errors import ConfigError
from vig_jax.inference.predictor import narrow_kernels, predictor
from vig_jax.layers.pixels import normalise
from vig_jax.layers.resize import resize_bilinear
from vig_jax.models import model_settings
from vig_jax.models.backbone import implementation_refusals
from vig_jax.sharding.mesh import batch_sharded, make_mesh
from vig_jax.sharding.rules import shardings
from vig_jax.tasks.protocol import Task
from vig_jax.tasks.registry import make_task
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.state import TrainState, init_state
from vig_jax.train.step import make_train_step
from vig_jax.weights.published import published_config

DROP_PATH = 0.2  # rate in training; its cost does not depend on the rate
CLASSES = {"classification": 1000, "segmentation": 150, "detection": 80}
Size = TypeVar("Size")
INPUTS = 4  # distinct batches, used in rotation
SMALL_BATCH = 8  # the most images of a call whose program has the weights as constants
TRAIN_MACS = 3  # forward passes' worth: forward, gradients by inputs, gradients by parameters


def benchmark_config(
    name: str,
    *,
    image_size: int | tuple[int, int],
    batch_size: int,
    dtype: str = "bfloat16",
    gla_implementation: str | None = None,
    task: str = "classification",
) -> RunConfig:
    """Returns the config of a published model at an image size, for measuring the bare update.

    Augmentation, mixing and clipping are off, so that only the models are compared.

    Args:
        name: one of `vig_jax.list_models()`.
        image_size: side in pixels, or height and width. Position embeddings are made for the side.
        batch_size: images per step.
        dtype: of the computation.
        gla_implementation: see `kernels_pallas.vig_mixer`.
        task: "classification"; "segmentation": UperNet with 150 classes; or "detection": Mask R-CNN
            with 80 classes. The last two have no EMA. A new detector has hardly an opinion, so
            every pair of a region and a class is a candidate: the least score is 0.

    Raises:
        ConfigError: an unknown model, or a setting that does not fit it.
    """
    settings: dict[str, Any] = {
        "num_classes": CLASSES[task],
        "dtype": dtype,
        "gla_implementation": gla_implementation,
        "drop_path_rate": DROP_PATH,
        "merge_scale": None,
    }
    if "img_size" in model_settings(name) and isinstance(image_size, int):
        settings["img_size"] = image_size
    config = published_config(name, settings=settings, image_size=image_size)
    train = dataclasses.replace(config.train, batch_size=batch_size)
    if task != "classification":
        train = dataclasses.replace(train, ema_decay=0.0)
        config = dataclasses.replace(config, task=_task_config(task, size_of(config)))
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
        train=train,
    )


def _task_config(task: str, size: tuple[int, int]) -> SegmentationConfig | DetectionConfig:
    """Returns the settings of a dense task; in detection, all images have the given size."""
    if task == "segmentation":
        return SegmentationConfig(name=task)
    return DetectionConfig(
        name=task,
        resize_scale=(max(size), min(size)),
        buckets=(size, size[::-1]),
        score_threshold=0.0,
    )


def inference_program(config: RunConfig) -> Program:
    """Compiles the inference of a new model: `compiled(variables, pixels) -> results`.

    Classification is `vig_jax.predictor`, with logits as results; programs for up to 8 images have
    the weights as constants. Segmentation ends with a label map of the images' size for each of
    them; full-size logits exist for one image at a time.
    Detection is `Detector.detect` on whole images, with masks of 28 pixels a side.
    """
    if isinstance(config.task, DetectionConfig):
        return _detection_program(config)
    if not isinstance(config.task, SegmentationConfig):
        return _logits_program(config)
    model, size = model_of(config), size_of(config)
    variables = narrow_kernels(jax.jit(make_task(config, {}).task.init)(jax.random.key(0)), model)

    def labels_of_image(logits: jax.Array) -> jax.Array:
        return jnp.argmax(resize_bilinear(logits[None], size)[0], axis=-1).astype(jnp.uint8)

    def label_maps(variables: Any, images: jax.Array) -> jax.Array:
        pixels = normalise(images, config.data.mean, config.data.std)
        return jax.lax.map(labels_of_image, model.apply(variables, pixels))

    inputs = [(variables, random_pixels(config, seed)) for seed in range(INPUTS)]
    with implementation_refusals(config.model.gla_implementation):
        return Program(jax.jit(label_maps).lower(*inputs[0]).compile(), inputs)


def _detection_program(config: RunConfig, *, logits: bool = False) -> Program:
    """Compiles the inference of a new detector.

    Args:
        config: of the detector.
        logits: return those of the anchors, [B, N], instead of the detections.
    """
    model, size = model_of(config), size_of(config)
    variables = narrow_kernels(jax.jit(make_task(config, {}).task.init)(jax.random.key(0)), model)

    def run(variables: Any, images: jax.Array) -> Any:
        pixels = normalise(images, config.data.mean, config.data.std)
        sizes = jnp.broadcast_to(jnp.array(size), (len(images), 2))
        if not logits:
            return model.apply(variables, pixels, sizes, method="detect")
        maps = model.apply(variables, pixels, sizes=sizes, method="features")
        levels = model.apply(variables, maps, method="anchor_predictions")
        return jnp.concatenate([level.logits for level in levels], axis=1)

    inputs = [(variables, random_pixels(config, seed)) for seed in range(INPUTS)]
    with implementation_refusals(config.model.gla_implementation):
        return Program(jax.jit(run).lower(*inputs[0]).compile(), inputs)


def _logits_program(config: RunConfig) -> Program:
    """Compiles `compiled(variables, pixels) -> logits` of a new model; a detector's anchors'."""
    if isinstance(config.task, DetectionConfig):
        return _detection_program(config, logits=True)
    task = make_task(config, {}).task
    variables = jax.jit(task.init)(jax.random.key(0))
    batch_size, model = config.train.batch_size, model_of(config)
    small = batch_size <= SMALL_BATCH
    run = predictor(model, variables, batch_size, size_of(config), weights_in_program=small)
    inputs = [(run.variables, random_pixels(config, seed)) for seed in range(INPUTS)]
    constants = jax.eval_shape(lambda: narrow_kernels(variables, model)) if small else ()
    return Program(run.compiled, inputs, constants=constants)


@dataclasses.dataclass(frozen=True)
class Training:
    """The parts of a training step on a mesh, not compiled.

    Attributes:
        task: of the config.
        initial: makes the state before the first update.
        split: the shardings of the state.
        step: see `vig_jax.train.step.make_train_step`.
    """

    task: Task
    initial: Callable[[], TrainState]
    split: TrainState
    step: Any


def training(config: RunConfig, mesh: Mesh) -> Training:
    """Returns the training step of a new model; call and lower it under `jax.set_mesh(mesh)`.

    Raises:
        ConfigError: the images are not square, as those of training are except in detection.
    """
    if config.data.eval_size is not None and not isinstance(config.task, DetectionConfig):
        height, width = config.data.eval_size
        raise ConfigError(
            f"--image-size is {height}x{width}; images of training are square: give their side"
        )
    task, train = make_task(config, {}).task, config.train
    schedule = optax.constant_schedule(config.optimizer.base_lr)
    optimizer = make_optimizer(config.optimizer, schedule)

    def initial() -> TrainState:
        return init_state(task, optimizer, seed=config.seed, ema=train.ema_decay > 0)

    with jax.set_mesh(mesh):
        split: TrainState = shardings(jax.eval_shape(initial), mesh)
    step = make_train_step(
        task, optimizer, schedule, ema_decay=train.ema_decay, mesh=mesh, split=split
    )
    return Training(task, initial, split, step)


def training_program(config: RunConfig) -> Program:
    """Compiles the training step of a new model: `compiled(state, batch) -> (state, metrics)`.

    Raises:
        ConfigError: see `training`.
    """
    mesh = make_mesh(jax.local_devices()[:1])
    parts = training(config, mesh)

    def batch(seed: int) -> dict[str, jax.Array]:
        return jax.device_put(
            random_batch(config, parts.task.batch_spec, seed), batch_sharded(mesh)
        )

    with jax.set_mesh(mesh):
        new_state = jax.jit(parts.initial, out_shardings=parts.split)
        inputs = [(batch(seed),) for seed in range(INPUTS)]
        with implementation_refusals(config.model.gla_implementation):
            state = new_state()
            return Program(parts.step.lower(state, *inputs[0]).compile(), inputs, state)


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
    """Compares the logits of a model with those of the same model in float32.

    Args:
        config: of the program.
        program: from `inference_program(config)`; those of segmentation and detection give no
            logits, and another is compiled in their place.
        images: number of images to compare.
    """
    batch_size = config.train.batch_size
    if isinstance(config.task, SegmentationConfig | DetectionConfig):
        program = _logits_program(config)
    wide_config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="float32"),
        train=dataclasses.replace(config.train, batch_size=min(images, batch_size)),
    )
    wide = _logits_program(wide_config)
    logits, expected = [], []
    for seed in range(math.ceil(images / batch_size)):
        pixels = random_pixels(config, seed)
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
    image_sizes: Sequence[Size], batch_sizes: Sequence[int]
) -> list[tuple[Size, int]]:
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
    """Returns the operations per image of inference or of a training step; two per MAC.

    For segmenters these are the ones that are computed, `Macs.total` without `Macs.saved`. A step
    of detection counts as three times its inference, although it has other numbers of regions.
    """
    macs = count_macs(model_of(config), *size_of(config))
    return 2 * (macs.total - macs.saved) * (TRAIN_MACS if train else 1)


def model_of(config: RunConfig) -> Any:
    """Returns the model of a config from `benchmark_config`."""
    return make_task(config, {}).task.model


def size_text(config: RunConfig) -> int | str:
    """Returns the side of the images, or "HEIGHTxWIDTH" if they are not square."""
    height, width = size_of(config)
    return height if height == width else f"{height}x{width}"
