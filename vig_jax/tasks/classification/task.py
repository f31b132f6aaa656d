"""The training loss of classification: RandAugment, erasing, mixup, CutMix, label smoothing."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from vig_jax.augment.color_jitter import color_jitter
from vig_jax.augment.erasing import erase
from vig_jax.augment.mixup import mix_images, mix_targets
from vig_jax.augment.rand_augment import mean_color, rand_augment
from vig_jax.augment.registry import apply_augmentations
from vig_jax.config import DataConfig
from vig_jax.layers.pixels import normalise
from vig_jax.sharding.mesh import smallest_batch
from vig_jax.tasks.losses import soft_cross_entropy
from vig_jax.tasks.protocol import Aux, Batch, BatchSpec, Variables


@dataclasses.dataclass(frozen=True)
class Classification:
    """A classifier and its training loss; see `vig_jax.tasks.protocol.Task`.

    Attributes:
        model: gives logits [B, num_classes].
        num_classes: width of the head.
        data: image size, normalisation and augmentation.
        label_smoothing: weight of the uniform distribution in the targets.
    """

    model: nn.Module
    num_classes: int
    data: DataConfig
    label_smoothing: float

    @property
    def batch_spec(self) -> BatchSpec:
        """Images uint8 [S, S, 3] and labels int32."""
        side = self.data.image_size
        return {
            "image": jax.ShapeDtypeStruct((side, side, 3), np.uint8),
            "label": jax.ShapeDtypeStruct((), np.int32),
        }

    def init(self, key: jax.Array) -> Variables:
        """Returns random parameters."""
        side = self.data.image_size
        return self.model.init(key, jnp.zeros((smallest_batch(), side, side, 3)))

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], Aux]:
        """Returns the mean cross-entropy against mixed, smoothed targets, in nats."""
        return self.loss_of_inputs(variables, self.training_inputs(batch, key), key)

    def loss_of_inputs(
        self,
        variables: Variables,
        inputs: tuple[Float[Array, "B S S 3"], Float[Array, "B classes"]],
        key: jax.Array,
    ) -> tuple[Float[Array, ""], Aux]:
        """Returns the loss of images and targets of `training_inputs`, given the same key."""
        images, targets = inputs
        model_key = jax.random.split(key, 3)[2]
        logits: Any = self.model.apply(variables, images, train=True, rngs={"dropout": model_key})
        return jnp.mean(soft_cross_entropy(logits, targets)), Aux()

    def training_inputs(
        self, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, "B S S 3"], Float[Array, "B classes"]]:
        """Returns augmented, normalised, mixed images and their targets, as `loss` uses them."""
        augment_key, mix_key, _ = jax.random.split(key, 3)
        images = augment(augment_key, batch["image"], self.data)
        images, lam = mix_images(
            mix_key,
            images,
            mixup_alpha=self.data.mixup_alpha,
            cutmix_alpha=self.data.cutmix_alpha,
            group=self.data.mixup_group,
        )
        return images, mix_targets(batch["label"], lam, self.num_classes, self.label_smoothing)


def augment(
    key: PRNGKeyArray, images: UInt8[Array, "B H W 3"], data: DataConfig
) -> Float[Array, "B H W 3"]:
    """Applies registered augmentations, RandAugment or else colour jitter, and random erasing.

    Args:
        key: drives all draws.
        images: any size.
        data: which augmentations, and their strength.

    Returns:
        Normalised images.

    Raises:
        ConfigError: an augmentation that is not registered, or changes shape or dtype.
    """
    change_key, erase_key = jax.random.split(key)
    images = apply_augmentations(key, images, data.augmentations)
    if data.rand_augment_layers:
        images, _ = rand_augment(
            change_key,
            images,
            layers=data.rand_augment_layers,
            magnitude=data.rand_augment_magnitude,
            magnitude_std=data.rand_augment_std,
            fill=mean_color(data.mean),
        )
    elif data.color_jitter:
        images = color_jitter(change_key, images, strength=data.color_jitter)
    normalised = normalise(images, data.mean, data.std)
    if data.erase_probability:
        normalised = erase(erase_key, normalised, probability=data.erase_probability)
    return normalised
