"""Classification of images at their native sizes, packed in rows of tokens."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vig_jax.augment.erasing import erase_packed
from vig_jax.augment.mixup import mix_targets
from vig_jax.config import DataConfig, RunConfig
from vig_jax.data.preprocess.native import NativePreprocess, RowShape
from vig_jax.data.preprocess.protocol import Spec
from vig_jax.errors import ConfigError
from vig_jax.layers.pixels import normalise
from vig_jax.models import ViG
from vig_jax.models.from_config import model_from_config
from vig_jax.sharding.mesh import smallest_batch
from vig_jax.tasks.classification.evaluation import ClassificationEvaluation
from vig_jax.tasks.classification.preview import draw_sheet, to_pixels
from vig_jax.tasks.losses import soft_cross_entropy
from vig_jax.tasks.protocol import Aux, Batch, BatchSpec, Variables
from vig_jax.tasks.registry import TaskBundle

# Settings of augmentations that need images of one size, and what turns each off.
_SQUARE: dict[str, Any] = {
    "mixup_alpha": 0.0,
    "cutmix_alpha": 0.0,
    "rand_augment_layers": 0,
    "color_jitter": 0.0,
    "augmentations": (),
}
_MOST_SHOWN = 40  # images of the first batch


def make_native(config: RunConfig, class_names: Sequence[str]) -> TaskBundle:
    """Builds the classification task for `config.data.native_sizes`.

    Args:
        config: with the number of classes filled in.
        class_names: one per label; may be empty.

    Raises:
        ConfigError: the model is no plain ViG, or a setting needs images of one size.
    """
    data, classes = config.data, config.model.num_classes
    assert classes is not None
    model = model_from_config(config.model)
    if not isinstance(model, ViG):
        raise ConfigError(
            f"config.data.native_sizes is for plain models: the stages of {config.model.name} "
            "change the grids of packed images. Use vig_t, vig_s or vig_b, or set it to False"
        )
    if data.eval_size:
        raise ConfigError(
            f"config.data.eval_size={data.eval_size} has no meaning with config.data.native_sizes: "
            "leave it (--image-size) out; config.data.max_tokens limits the size of an image"
        )
    _check_augmentations(data)
    shape = RowShape.from_data(data, model.patch_size)
    task = NativeClassification(model, classes, data, config.train.label_smoothing, shape)
    evaluation = NativeEvaluation(model, classes, data, tuple(class_names), shape=shape)
    return TaskBundle(
        config=config,
        task=task,
        evaluation=evaluation,
        train_preprocess=NativePreprocess(data, shape, train=True),
        eval_preprocess=NativePreprocess(data, shape, train=False),
        preview=NativePreview(task, class_names),
        summary=f"{classes} classes, up to {shape.image_tokens} tokens of an image, "
        f"{shape.images} images in rows of {shape.tokens} tokens",
    )


def at_native_sizes(data: DataConfig, max_tokens: int) -> DataConfig:
    """Returns settings that evaluate any plain classifier at native sizes.

    Args:
        data: that it was trained with; augmentations that need images of one size are left out.
        max_tokens: tokens of an image at most.
    """
    native: dict[str, Any] = {"native_sizes": True, "max_tokens": max_tokens, "row_tokens": 0}
    return dataclasses.replace(data, **native, **_SQUARE)


def _check_augmentations(data: DataConfig) -> None:
    """Refuses augmentations of images of one size."""
    given = [f"{key}={getattr(data, key)}" for key, off in _SQUARE.items() if getattr(data, key)]
    if given:
        raise ConfigError(
            "config.data.native_sizes cannot train with augmentations that need images of one "
            f"size: set config.data.{', .'.join(given)} to 0 (augmentations to ())"
        )


@dataclasses.dataclass(frozen=True)
class NativeClassification:
    """A plain classifier and its loss on packed images; see `vig_jax.tasks.protocol.Task`.

    Attributes:
        model: plain.
        num_classes: width of the head.
        data: normalisation.
        label_smoothing: weight of the uniform distribution in the targets.
        shape: of a row.
    """

    model: ViG
    num_classes: int
    data: DataConfig
    label_smoothing: float
    shape: RowShape

    @property
    def batch_spec(self) -> BatchSpec:
        """The arrays of `NativePreprocess`."""
        return _types(NativePreprocess(self.data, self.shape, train=True).spec)

    def init(self, key: jax.Array) -> Variables:
        """Returns random parameters."""
        side = self.data.image_size
        return self.model.init(key, jnp.zeros((smallest_batch(), side, side, 3)))

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], Aux]:
        """Returns the mean cross-entropy of the images against smoothed targets, in nats.

        Every row has all of its images. `row_fill` is the share of the tokens that hold images.
        """
        model_key = jax.random.split(key, 3)[2]
        logits: Any = self.model.apply(
            variables,
            self.training_patches(batch, key),
            batch["sizes"],
            train=True,
            rngs={"dropout": model_key},
            method="packed",
        )
        targets = self.targets(batch["label"])
        losses = soft_cross_entropy(logits.reshape(-1, self.num_classes), targets)
        tokens = jnp.mean(jnp.sum(jnp.prod(batch["sizes"], axis=2), axis=1, dtype=jnp.float32))
        return jnp.mean(losses), Aux({"row_fill": tokens / self.shape.tokens})

    def training_patches(self, batch: Batch, key: jax.Array) -> Float[Array, "R T P P 3"]:
        """Returns augmented, normalised patches, as `loss` uses them."""
        erase_key = jax.random.split(key, 3)[0]
        patches = _normalised(batch["patches"], self.data)
        if not self.data.erase_probability:
            return patches
        return erase_packed(
            erase_key, patches, batch["sizes"], probability=self.data.erase_probability
        )

    def targets(self, labels: Int[Array, "R N"]) -> Float[Array, "I classes"]:
        """Returns the smoothed targets of all images, row by row."""
        lam = jnp.ones(1)  # nothing is mixed
        return mix_targets(labels.reshape(-1), lam, self.num_classes, self.label_smoothing)


@dataclasses.dataclass(frozen=True)
class NativeEvaluation(ClassificationEvaluation):
    """Accuracies on packed images; a place of a row without an image has weight 0.

    Attributes:
        shape: of a row.
    """

    shape: RowShape = dataclasses.field(kw_only=True)

    @property
    def batch_spec(self) -> BatchSpec:
        """The arrays of `NativePreprocess`, and weights float32 [N]."""
        spec = NativePreprocess(self.data, self.shape, train=False).spec
        weight = jax.ShapeDtypeStruct((self.shape.images,), np.float32)
        return {**_types(spec), "weight": weight}

    def logits(self, variables: Variables, batch: Batch) -> Float[Array, "R N classes"]:
        """Returns the class logits of a batch."""
        patches = _normalised(batch["patches"], self.data)
        logits: Any = self.model.apply(variables, patches, batch["sizes"], method="packed")
        return logits


class PackedArrays(NamedTuple):
    """Rows of images and targets to draw."""

    patches: UInt8[Array | np.ndarray, "R T P P 3"]
    sizes: Int[Array | np.ndarray, "R N 2"]
    targets: Float[Array | np.ndarray, "R N classes"]


@dataclasses.dataclass(frozen=True)
class NativePreview:
    """Draws packed images as the model sees them; see `vig_jax.tasks.protocol.Preview`.

    Attributes:
        task: of the run.
        class_names: one per label; labels beyond them are shown as numbers.
    """

    task: NativeClassification
    class_names: Sequence[str]

    def inputs(self, batch: Batch, key: jax.Array, rows: np.ndarray) -> PackedArrays:
        """Returns pixels, sizes and targets of those of the given rows that are drawn."""
        rows = rows[: -(-_MOST_SHOWN // self.task.shape.images)]
        targets = self.task.targets(batch["label"]).reshape(*batch["label"].shape, -1)
        pixels = to_pixels(self.task.training_patches(batch, key)[rows], self.task.data)
        return PackedArrays(pixels, batch["sizes"][rows], targets[rows])

    def draw(self, arrays: PackedArrays, path: Path) -> None:
        """Writes the images as a contact sheet, with one or two classes above each."""
        images, targets = [], []
        for patches, sizes, of_row in zip(*map(np.asarray, arrays), strict=True):
            start, side = 0, patches.shape[1]
            for (rows, columns), target in zip(sizes.tolist(), of_row, strict=True):
                part = patches[start : start + rows * columns]
                grid = part.reshape(rows, columns, side, side, 3).swapaxes(1, 2)
                images.append(grid.reshape(rows * side, columns * side, 3))
                targets.append(target)
                start += rows * columns
        draw_sheet(images[:_MOST_SHOWN], targets[:_MOST_SHOWN], self.class_names, path)


def _types(spec: Spec) -> BatchSpec:
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, (shape, dtype) in spec.items()}


def _normalised(patches: UInt8[Array, "R T P P 3"], data: DataConfig) -> Float[Array, "R T P P 3"]:
    rows, tokens, *patch = patches.shape
    pixels = normalise(patches.reshape(rows * tokens, *patch), data.mean, data.std)
    return pixels.reshape(patches.shape)
