"""Trained models as functions of uint8 images, with names for what goes in and comes out."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.core.resize import resize_bilinear
from vig_jax.config import DetectionConfig, RunConfig, SegmentationConfig, TaskConfig
from vig_jax.errors import ConfigError
from vig_jax.inference.loaded_model import LoadedModel
from vig_jax.layers.pixels import normalise, normalise_parts

Outputs = Literal["logits", "features", "labels", "objects"]
OUTPUTS: dict[str, tuple[Outputs, ...]] = {
    "classifier": ("logits", "features"),
    "segmenter": ("logits", "features", "labels"),
    "detector": ("objects", "features"),
}
"""The results that a program can return, by the kind of its model; the default is first."""


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of a batch, and the shapes of its arguments.

    Attributes:
        run: takes the inputs in order, returns arrays by name.
        inputs: shapes without the batch's axis, and dtypes.
        outputs: names of the results in order.
        has_loops: the number of steps depends on values.
    """

    run: Callable[..., dict[str, jax.Array]]
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    outputs: tuple[str, ...]
    has_loops: bool = False

    def batched(self, size: Any) -> list[jax.ShapeDtypeStruct]:
        """Returns the inputs with an axis for the batch, whose size may be symbolic."""
        return [jax.ShapeDtypeStruct((size, *x.shape), x.dtype) for x in self.inputs.values()]

    def random_inputs(self, size: int) -> list[np.ndarray]:
        """Returns a batch of random images of the full size."""
        generator = np.random.default_rng(0)
        height, width = self.inputs["images"].shape[:2]
        images = generator.integers(0, 256, (size, height, width, 3), np.uint8)
        sizes = np.tile(np.array([[height, width]], np.int32), (size, 1))
        return [images, sizes][: len(self.inputs)]


def kind_of(config: RunConfig) -> str:
    """Returns "classifier", "segmenter" or "detector".

    Raises:
        ConfigError: the task is not built in.
    """
    if isinstance(config.task, SegmentationConfig):
        return "segmenter"
    if isinstance(config.task, DetectionConfig):
        return "detector"
    if config.task.name == TaskConfig.name:
        return "classifier"
    raise ConfigError(
        f"the task {config.task.name!r} is not built in, so the outputs of its model are unknown: "
        "export a function of it with jax.export"
    )


def program_of(
    loaded: LoadedModel,
    outputs: Outputs | None = None,
    image_size: int | tuple[int, int] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Program:
    """Returns the function of a model: it normalises pixels and applies the model.

    Args:
        loaded: the model; its weights become constants of the function.
        outputs: what it returns, see `OUTPUTS`; None means the first of the kind.
        image_size: side of the images in pixels, or height and width; None means that of the
            evaluation, for a segmenter that of a window, for a detector the first bucket.
        dtype: of the computation.

    Raises:
        ConfigError: a model that does not have these outputs, or a size that it refuses.
    """
    kind = kind_of(loaded.config)
    chosen = outputs or OUTPUTS[kind][0]
    if chosen not in OUTPUTS[kind]:
        raise ConfigError(
            f"outputs={chosen!r}: a {kind} has {' or '.join(OUTPUTS[kind])}; name one of them"
        )
    model = dataclasses.replace(
        loaded.config.model, dtype=dtype, remat=False, gla_implementation=None
    )
    config = dataclasses.replace(loaded.config, model=model)
    if kind == "classifier" and chosen == "logits" and not model.num_classes:
        raise ConfigError(
            f"{loaded.description}: there is no head, so there are no logits: use outputs=features"
        )
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    inputs = {"images": jax.ShapeDtypeStruct((*(size or _size_of(config)), 3), jnp.uint8)}
    if chosen == "objects":
        inputs["sizes"] = jax.ShapeDtypeStruct((2,), jnp.int32)
    run = _function(dataclasses.replace(loaded, config=config), chosen)
    one = [jax.ShapeDtypeStruct((1, *x.shape), x.dtype) for x in inputs.values()]
    names = tuple(jax.eval_shape(run, *one))  # a size that the model refuses is an error here
    return Program(run, inputs, names, has_loops=chosen == "objects")


def _size_of(config: RunConfig) -> tuple[int, int]:
    data, task = config.data, config.task
    if isinstance(task, DetectionConfig):
        height, width = task.buckets[0]
        return height, width
    if data.eval_size and not isinstance(task, SegmentationConfig):
        height, width = data.eval_size
        return height, width
    return data.image_size, data.image_size


def _function(loaded: LoadedModel, outputs: Outputs) -> Callable[..., dict[str, jax.Array]]:
    module: Any = loaded.model
    data, variables = loaded.config.data, jax.tree.map(jnp.asarray, loaded.variables)

    def features(images: jax.Array) -> dict[str, jax.Array]:
        pixels = normalise(images, data.mean, data.std)
        maps = module.apply(variables, pixels, method="features")
        strides = [info.reduction for info in module.feature_info]
        return {f"stride_{stride}": x for stride, x in zip(strides, maps, strict=True)}

    def logits(images: jax.Array) -> dict[str, jax.Array]:
        return {"logits": module.apply(variables, normalise(images, data.mean, data.std))}

    def labels(images: jax.Array) -> dict[str, jax.Array]:
        full = resize_bilinear(logits(images)["logits"], images.shape[1:3])
        narrow = jnp.uint8 if full.shape[-1] <= 256 else jnp.int32
        return {"labels": jnp.argmax(full, axis=-1).astype(narrow)}

    def objects(images: jax.Array, sizes: jax.Array) -> dict[str, jax.Array]:
        pixels = normalise_parts(images, sizes, data.mean, data.std)
        found = module.apply(variables, pixels, sizes, method="detect")
        named = {"boxes": found.boxes, "scores": found.scores, "classes": found.classes}
        return named if found.masks is None else {**named, "masks": found.masks}

    functions: dict[Outputs, Callable[..., dict[str, jax.Array]]] = {
        "logits": logits,
        "features": features,
        "labels": labels,
        "objects": objects,
    }
    return functions[outputs]
