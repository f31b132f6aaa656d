"""The programs that benchmarks time: a model on random pixels, compiled for one device.

The tasks differ in what inference returns and in the arrays of training.
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from kernels_pallas.core.accuracy import rms_relative_error
from vig_jax.bench.macs import count_macs
from vig_jax.bench.throughput import Program
from vig_jax.config import DetectionConfig, RunConfig, SegmentationConfig, TaskConfig
from vig_jax.errors import ConfigError
from vig_jax.inference.predictor import narrow_kernels, predictor
from vig_jax.layers.pixels import normalise
from vig_jax.layers.resize import resize_bilinear
from vig_jax.models import model_settings
from vig_jax.models.backbone import implementation_refusals
from vig_jax.sharding.mesh import batch_sharded, make_mesh, replicated
from vig_jax.tasks.protocol import BatchSpec
from vig_jax.tasks.registry import make_task
from vig_jax.train.optim.optimizer import make_optimizer
from vig_jax.train.state import init_state
from vig_jax.train.step import make_train_step
from vig_jax.weights.published import published_config

DROP_PATH = 0.2  # rate in training; its cost does not depend on the rate
CLASSES = {"classification": 1000, "segmentation": 150, "detection": 80}
Size = TypeVar("Size")
INPUTS = 4  # distinct batches, used in rotation
_OBJECTS = 7  # of a training image, about the mean of COCO
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
        task: "classification"; "segmentation": UperNet with 150 classes, without EMA;
            "detection": Mask R-CNN with 80 classes, without EMA, on padded images of this size.

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
        height, width = size_of(config)
        tasks: dict[str, TaskConfig] = {
            "segmentation": SegmentationConfig(name=task),
            "detection": DetectionConfig(
                name=task,
                buckets=((height, width), (width, height)),
                resize_scale=(max(height, width), min(height, width)),
            ),
        }
        config = dataclasses.replace(config, task=tasks[task])
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


def inference_program(config: RunConfig) -> Program:
    """Compiles the inference of a new model: `compiled(variables, pixels) -> results`.

    Classification is `vig_jax.predictor`, with logits as results. Segmentation ends with a label
    map of the images' size for each of them; full-size logits exist for one image at a time.
    Detection returns `vig_jax.models.Detections`.
    """
    if isinstance(config.task, DetectionConfig):
        return _detections_program(config)
    if not isinstance(config.task, SegmentationConfig):
        return _logits_program(config)
    model, size = model_of(config), size_of(config)
    variables = narrow_kernels(jax.jit(make_task(config, {}).task.init)(jax.random.key(0)), model)

    def labels_of_image(logits: jax.Array) -> jax.Array:
        return jnp.argmax(resize_bilinear(logits[None], size)[0], axis=-1).astype(jnp.uint8)

    def label_maps(variables: Any, images: jax.Array) -> jax.Array:
        pixels = normalise(images, config.data.mean, config.data.std)
        return jax.lax.map(labels_of_image, model.apply(variables, pixels))

    inputs = [(variables, _pixels(config, seed)) for seed in range(INPUTS)]
    with implementation_refusals(config.model.gla_implementation):
        return Program(jax.jit(label_maps).lower(*inputs[0]).compile(), inputs)


def _detections_program(config: RunConfig) -> Program:
    """Compiles the inference of a new detector: `compiled(variables, pixels) -> Detections`."""
    model, batch = model_of(config), config.train.batch_size
    variables = narrow_kernels(jax.jit(make_task(config, {}).task.init)(jax.random.key(0)), model)
    sizes = jnp.tile(jnp.array(size_of(config), jnp.int32), (batch, 1))

    def detect(variables: Any, images: jax.Array) -> Any:
        pixels = normalise(images, config.data.mean, config.data.std)
        return model.apply(variables, pixels, sizes)

    inputs = [(variables, _pixels(config, seed)) for seed in range(INPUTS)]
    with implementation_refusals(config.model.gla_implementation):
        return Program(jax.jit(detect).lower(*inputs[0]).compile(), inputs)


def _logits_program(config: RunConfig) -> Program:
    """Compiles `vig_jax.predictor` of a new model: `compiled(variables, pixels) -> logits`."""
    task = make_task(config, {}).task
    variables = jax.jit(task.init)(jax.random.key(0))
    run = predictor(model_of(config), variables, config.train.batch_size, size_of(config))
    return Program(run.compiled, [(run.variables, _pixels(config, seed)) for seed in range(INPUTS)])


def training_program(config: RunConfig) -> Program:
    """Compiles the training step of a new model: `compiled(state, batch) -> (state, metrics)`.

    Raises:
        ConfigError: the images are not square, as those of training are, except for detection.
    """
    if config.data.eval_size is not None and not isinstance(config.task, DetectionConfig):
        height, width = config.data.eval_size
        raise ConfigError(
            f"--image-size is {height}x{width}; images of training are square: give their side"
        )
    task, train = make_task(config, {}).task, config.train
    mesh = make_mesh(jax.local_devices()[:1])
    schedule = optax.constant_schedule(config.optimizer.base_lr)
    optimizer = make_optimizer(config.optimizer, schedule)

    def batch(seed: int) -> dict[str, jax.Array]:
        return jax.device_put(_training_arrays(config, task.batch_spec, seed), batch_sharded(mesh))

    with jax.set_mesh(mesh):
        new_state = jax.jit(
            lambda: init_state(task, optimizer, seed=config.seed, ema=train.ema_decay > 0),
            out_shardings=replicated(mesh),
        )
        step: Any = make_train_step(task, optimizer, schedule, ema_decay=train.ema_decay, mesh=mesh)
        inputs = [(batch(seed),) for seed in range(INPUTS)]
        with implementation_refusals(config.model.gla_implementation):
            state = new_state()
            return Program(step.lower(state, *inputs[0]).compile(), inputs, state)


def _training_arrays(config: RunConfig, spec: BatchSpec, seed: int) -> dict[str, jax.Array]:
    """Returns random arrays of a training batch; images of detection have seven objects."""
    count, key = config.train.batch_size, jax.random.key(seed)
    height, width = size_of(config)
    classes = functools.partial(
        jax.random.randint, key, minval=0, maxval=config.model.num_classes or 1
    )

    def boxes(shape: tuple[int, ...]) -> jax.Array:
        low, side = jax.random.uniform(key, (2, *shape[:-1], 2), minval=0.1, maxval=0.4)
        return jnp.concatenate([low, low + side], -1) * jnp.array([width, height] * 2)

    made = {
        "image": lambda shape: _pixels(config, seed),
        "size": lambda shape: jnp.broadcast_to(jnp.array([height, width]), shape),
        "image_id": lambda shape: jnp.arange(count),
        "boxes": boxes,
        "valid": lambda shape: jnp.broadcast_to(jnp.arange(shape[1]) < _OBJECTS, shape),
        "masks": lambda shape: 255 * jax.random.randint(key, shape, 0, 2),
    }
    shapes = {name: (count, *array.shape) for name, array in spec.items()}
    arrays = {name: made.get(name, classes)(shape) for name, shape in shapes.items()}
    return {name: x.astype(spec[name].dtype) for name, x in arrays.items()}


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
        program: from `inference_program(config)`; that of segmentation has no logits, and another
            is compiled in its place.
        images: number of images to compare.
    """
    batch_size = config.train.batch_size
    if isinstance(config.task, DetectionConfig):
        raise ConfigError("--check compares logits, and a detector returns boxes: leave it out")
    if isinstance(config.task, SegmentationConfig):
        program = _logits_program(config)
    wide_config = dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, dtype="float32"),
        train=dataclasses.replace(config.train, batch_size=min(images, batch_size)),
    )
    wide = _logits_program(wide_config)
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

    For segmenters these are the ones that are computed, `Macs.total` without `Macs.saved`.
    """
    macs = count_macs(model_of(config), *size_of(config))
    return 2 * (macs.total - macs.saved) * (TRAIN_MACS if train else 1)


def model_of(config: RunConfig) -> Any:
    """Returns the model of a config from `benchmark_config`."""
    return make_task(config, {}).task.model


def size_of(config: RunConfig) -> tuple[int, int]:
    """Returns height and width of the images."""
    return config.data.eval_size or (config.data.image_size, config.data.image_size)


def size_text(config: RunConfig) -> int | str:
    """Returns the side of the images, or "HEIGHTxWIDTH" if they are not square."""
    height, width = size_of(config)
    return height if height == width else f"{height}x{width}"


def _pixels(config: RunConfig, seed: int) -> jax.Array:
    shape = (config.train.batch_size, *size_of(config), 3)
    return jax.random.randint(jax.random.key(seed), shape, 0, 256, jnp.int32).astype(jnp.uint8)
