"""The training loss of semantic segmentation: photometric distortion, both heads' cross-entropy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vig_jax.augment.photometric import photometric_distortion
from vig_jax.augment.registry import apply_augmentations
from vig_jax.config import DataConfig, SegmentationConfig
from vig_jax.layers.pixels import normalise_parts
from vig_jax.models.segmenter import Segmenter
from vig_jax.sharding.mesh import smallest_batch
from vig_jax.tasks.protocol import Aux, Batch, BatchSpec, Variables
from vig_jax.tasks.segmentation.loss import segmentation_loss


@dataclasses.dataclass(frozen=True)
class Segmentation:
    """A segmenter and its training loss; see `vig_jax.tasks.protocol.Task`.

    Attributes:
        model: gives logits [B, S / 4, S / 4, K].
        data: side S of the training crops, and normalisation.
        settings: photometric distortion and the weights of the loss.
    """

    model: Segmenter
    data: DataConfig
    settings: SegmentationConfig

    @property
    def batch_spec(self) -> BatchSpec:
        """Images uint8 [S, S, 3], masks uint8 [S, S], and heights and widths of the crops int32.

        A crop that is smaller than S is at the top left. The mask is 255 elsewhere.
        """
        side = self.data.image_size
        return {
            "image": jax.ShapeDtypeStruct((side, side, 3), np.uint8),
            "mask": jax.ShapeDtypeStruct((side, side), np.uint8),
            "size": jax.ShapeDtypeStruct((2,), np.int32),
        }

    def init(self, key: jax.Array) -> Variables:
        """Returns random parameters and the initial batch statistics."""
        side = self.data.image_size
        return self.model.init(key, jnp.zeros((smallest_batch(), side, side, 3)))

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], Aux]:
        """Returns the cross-entropy of the decode head plus the weighted one of the auxiliary head.

        Logs both losses in nats, `loss_decode` and `loss_aux`, and the decode head's share of right
        pixels in percent, `pixel_accuracy`.
        """
        images = self.training_inputs(batch, key)
        (logits, aux_logits), mutable = self.model.apply(
            variables,
            images,
            train=True,
            method="training_logits",
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.split(key)[1]},
        )
        non_ignore = self.settings.avg_non_ignore
        loss, accuracy = segmentation_loss(logits, batch["mask"], non_ignore)
        metrics = {"loss_decode": loss, "pixel_accuracy": accuracy}
        if aux_logits is not None:
            aux_loss, _ = segmentation_loss(aux_logits, batch["mask"], non_ignore)
            metrics["loss_aux"] = aux_loss
            loss = loss + self.settings.aux_weight * aux_loss
        return loss, Aux(metrics, mutable)

    def training_inputs(self, batch: Batch, key: jax.Array) -> Float[Array, "B S S 3"]:
        """Returns augmented, normalised crops, 0 (the mean colour) beyond their size."""
        images, sizes = batch["image"], batch["size"]
        images = apply_augmentations(key, images, self.data.augmentations)
        if self.settings.photometric:
            images = photometric_distortion(jax.random.split(key)[0], images, sizes)
        return normalise_parts(images, sizes, self.data.mean, self.data.std)
