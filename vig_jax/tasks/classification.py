"""Image classification with RandAugment, random erasing, mixup, CutMix and label smoothing."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, UInt8

from vig_jax.augment.mixup import mix_images, mix_targets
from vig_jax.augment.rand_augment import color_jitter, erase, mean_color, rand_augment
from vig_jax.config import DataConfig, ModelConfig, RunConfig
from vig_jax.errors import DataSetError
from vig_jax.layers.pixels import normalise
from vig_jax.models import ViG, ViGH, create_model
from vig_jax.sharding.mesh import smallest_batch
from vig_jax.tasks.losses import cross_entropy, soft_cross_entropy
from vig_jax.tasks.protocol import Batch, Params, Sums

_MOST_CONFUSABLE = 2000  # classes: the counts of all pairs take 16 MB


@dataclasses.dataclass(frozen=True)
class Classification:
    """A classifier, its loss and its metrics; see `vig_jax.tasks.protocol.Task`.

    Batches hold `image` uint8 [B, S, S, 3] and `label` int32 [B]; for evaluation `weight`
    float32 [B] too, 0 for rows that only fill the batch.
    """

    model: nn.Module
    num_classes: int
    data: DataConfig
    label_smoothing: float
    headline: str = "top1"

    def init(self, key: jax.Array) -> Params:
        """Fresh parameters."""
        side = self.data.image_size
        return self.model.init(key, jnp.zeros((smallest_batch(), side, side, 3)))["params"]

    def loss(self, params: Params, batch: Batch, key: jax.Array) -> Float[Array, ""]:
        """Mean cross-entropy against mixed, smoothed targets, in nats."""
        images, targets = self.training_inputs(batch, key)
        model_key = jax.random.split(key, 3)[2]
        logits: Any = self.model.apply(
            {"params": params}, images, train=True, rngs={"dropout": model_key}
        )
        return jnp.mean(soft_cross_entropy(logits, targets))

    def training_inputs(
        self, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, "B S S 3"], Float[Array, "B classes"]]:
        """What the model sees in `loss`: augmented, normalised, mixed images and their targets."""
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

    def pixels(self, images: Float[Array, "B S S 3"]) -> UInt8[Array, "B S S 3"]:
        """Normalised images as they would look: what lies outside of [0, 255] is cut off."""
        bright = images * jnp.asarray(self.data.std) + jnp.asarray(self.data.mean)
        return jnp.round(255 * jnp.clip(bright, 0, 1)).astype(jnp.uint8)

    def evaluate(self, params: Params, batch: Batch) -> Sums:
        """Weighted sums of the loss and of the hits among the first 1 and 5 guesses.

        Of up to 2,000 classes also `confusion` [K, K]: how often each class (row) is taken for
        each (column).
        """
        logits: Any = self.model.apply(
            {"params": params}, normalise(batch["image"], self.data.mean, self.data.std)
        )
        labels, weight = batch["label"], batch["weight"]
        _, guesses = jax.lax.top_k(logits, min(5, self.num_classes))
        hits = guesses == labels[:, None]
        losses = cross_entropy(logits, labels)
        counts = {}
        if self.num_classes <= _MOST_CONFUSABLE:
            none = jnp.zeros((self.num_classes, self.num_classes))
            counts = {"confusion": none.at[labels, guesses[:, 0]].add(weight)}
        return counts | {
            "loss": jnp.sum(weight * losses),
            "top1": jnp.sum(weight * hits[:, 0]),
            "top5": jnp.sum(weight * hits.any(axis=1)),
            "weight": jnp.sum(weight),
        }

    def metrics(self, sums: Mapping[str, np.ndarray]) -> dict[str, float]:
        """`loss` in nats, `top1` and `top5` as fractions; of two classes, `f1` of the second.

        F1 is 2 TP / (2 TP + FP + FN), and 0 where that class is neither seen nor there.

        Raises:
            DataSetError: nothing was evaluated.
        """
        if not sums["weight"]:
            raise DataSetError("none of the images to evaluate can be decoded")
        values = {n: float(sums[n]) / float(sums["weight"]) for n in ("loss", "top1", "top5")}
        if self.num_classes == 2:
            (_, wrongly_seen), (missed, found) = sums["confusion"].tolist()
            relevant = 2 * found + wrongly_seen + missed
            values["f1"] = 2 * found / relevant if relevant else 0.0
        return values


def augment(
    key: PRNGKeyArray, images: UInt8[Array, "B H W 3"], data: DataConfig
) -> Float[Array, "B H W 3"]:
    """RandAugment or else colour jitter, normalisation, random erasing, as `data` says."""
    change_key, erase_key = jax.random.split(key)
    if data.rand_augment_layers:
        images = rand_augment(
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


def make_model(config: ModelConfig) -> ViG | ViGH:
    """The backbone with its head; settings that are None keep the variant's own values."""
    given = {name: value for name, value in dataclasses.asdict(config).items() if value is not None}
    return create_model(given.pop("name"), **(given | {"dtype": jnp.dtype(config.dtype)}))


def make_task(config: RunConfig) -> Classification:
    """The task of a resolved config, whose number of classes is known."""
    if config.model.num_classes is None:
        raise ValueError("config.model.num_classes is unset: take it from the data set first")
    return Classification(
        model=make_model(config.model),
        num_classes=config.model.num_classes,
        data=config.data,
        label_smoothing=config.train.label_smoothing,
    )
