"""The training loss of Mask R-CNN: region proposals, classes, boxes and masks."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt8

from vig_jax.augment.registry import apply_augmentations
from vig_jax.config import DataConfig, DetectionConfig
from vig_jax.heads.rpn import AnchorPredictions
from vig_jax.heads.select import Proposals
from vig_jax.layers.pixels import normalise_parts
from vig_jax.models.detector import IMAGES_AT_ONCE, Detector, map_sizes, whole_cells
from vig_jax.ops.mask_targets import mask_targets
from vig_jax.ops.matching import Matcher
from vig_jax.ops.sampling import image_keys
from vig_jax.sharding.mesh import smallest_batch
from vig_jax.sharding.per_image import per_device, per_image
from vig_jax.tasks.detection.losses import box_loss, mask_loss, rpn_loss
from vig_jax.tasks.detection.targets import (
    AnchorTargets,
    RoITargets,
    Truth,
    sample_anchors,
    sample_rois,
)
from vig_jax.tasks.protocol import Aux, Batch, BatchSpec, Variables

Targets = tuple[AnchorTargets, RoITargets, Float[Array, "B P h w"] | None]


@dataclasses.dataclass(frozen=True)
class Detection:
    """A detector and its training loss; see `vig_jax.tasks.protocol.Task`.

    Sums over all images of a batch are divided by counts over all of them, on every device alike.

    Attributes:
        model: the detector.
        data: normalisation of the images.
        settings: samples, rules of matching, and the weights of the losses.
    """

    model: Detector
    data: DataConfig
    settings: DetectionConfig

    @property
    def batch_spec(self) -> BatchSpec:
        """The arrays of `DetectionPreprocess`; images of other batches have other buckets' sizes.

        `scale` and `original` stay on the host.
        """
        settings = self.settings
        bucket = max(settings.buckets, key=math.prod)
        count, side = settings.max_boxes, settings.mask_side
        spec = {
            "image": jax.ShapeDtypeStruct((*bucket, 3), np.uint8),
            "size": jax.ShapeDtypeStruct((2,), np.int32),
            "image_id": jax.ShapeDtypeStruct((), np.int32),
            "boxes": jax.ShapeDtypeStruct((count, 4), np.float32),
            "labels": jax.ShapeDtypeStruct((count,), np.int32),
            "valid": jax.ShapeDtypeStruct((count,), np.bool_),
        }
        if self.model.masks:
            spec["masks"] = jax.ShapeDtypeStruct((count, side, side), np.uint8)
        return spec

    def init(self, key: jax.Array) -> Variables:
        """Returns random parameters."""
        side = 2 * self.model.smallest_size  # no parameter depends on the size of the images
        return self.model.init(key, jnp.zeros((smallest_batch(), side, side, 3)))

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array
    ) -> tuple[Float[Array, ""], Aux]:
        """Returns the weighted sum of the losses, which are logged by mmdet's names.

        Anchors and regions are drawn with keys that depend on `key` and on the image alone.
        """
        settings, sizes = self.settings, batch["size"]
        draw_key, drop_key = jax.random.split(key)
        images = self.training_inputs(batch, key)
        canvas = (images.shape[1], images.shape[2])
        apply: Callable[..., Any] = functools.partial(self.model.apply, variables)
        rngs = {"dropout": drop_key}
        maps = apply(images, sizes=sizes, train=True, rngs=rngs, method="features")
        predictions = apply(maps, method="anchor_predictions")
        found = self.model.select_proposals(
            predictions, canvas, sizes, settings.train_level_proposals
        )
        keys = image_keys(draw_key, batch["image_id"])
        anchors, regions, masks = self.targets(keys, canvas, batch, found)
        logits, deltas = _sampled(predictions, anchors.samples.indices)
        chosen = anchors.samples
        losses = dict(
            zip(
                ("loss_rpn_cls", "loss_rpn_bbox"),
                rpn_loss(logits, deltas, anchors.deltas, chosen.positive, chosen.valid),
                strict=True,
            )
        )
        logits, deltas = apply(maps, regions.rois, sizes, method="region_predictions")
        losses["loss_cls"], losses["loss_bbox"] = box_loss(
            logits, deltas, regions.labels, regions.deltas, regions.positive, regions.valid
        )
        if masks is not None:
            every = regions.rois, regions.labels, regions.positive
            rois, labels, positive = (x[:, : self._most_positive] for x in every)
            logits = apply(maps, rois, sizes, method="region_masks")
            losses["loss_mask"] = mask_loss(logits, masks, labels, positive)
        weights = self._weights
        total = sum((weights[name] * loss for name, loss in losses.items()), jnp.zeros(()))
        return total, Aux(losses)

    def training_inputs(self, batch: Batch, key: jax.Array) -> Float[Array, "B H W 3"]:
        """Returns augmented, normalised images, 0 (the mean colour) beyond their size."""
        images = apply_augmentations(key, batch["image"], self.data.augmentations)
        return normalise_parts(images, batch["size"], self.data.mean, self.data.std)

    def targets(
        self, keys: jax.Array, canvas: tuple[int, int], batch: Batch, proposals: Proposals
    ) -> Targets:
        """Returns the drawn anchors and regions of each image, and masks of the positive regions.

        Args:
            keys: one for each image.
            canvas: height and width of the padded images.
            batch: as `loss` gets it.
            proposals: of each image.
        """
        settings, model = self.settings, self.model
        grids = map_sizes(canvas)
        low, high = settings.rpn_negative, settings.rpn_positive
        anchor_matcher = Matcher(high, low, least_low_quality=low)
        least = settings.roi_positive
        region_matcher = Matcher(least, least, least_low_quality=least)
        anchor_positives = int(settings.rpn_samples * settings.rpn_positive_share)

        def of_image(
            key: jax.Array,
            size: Int[Array, "2"],
            truth: Truth,
            found: Proposals,
            bitmaps: UInt8[Array, "G h w"] | None,
        ) -> Targets:
            rpn_key, roi_key = jax.random.split(key)
            inside = model.anchors.valid(grids, whole_cells(size))
            anchors = sample_anchors(
                rpn_key, model.anchors.boxes(grids), inside, truth, anchor_matcher,
                settings.rpn_samples, anchor_positives,
            )  # fmt: skip
            regions = sample_rois(
                roi_key, found.boxes, found.valid, truth, region_matcher, model.num_classes,
                settings.roi_samples, self._most_positive,
            )  # fmt: skip
            if bitmaps is None:
                return anchors, regions, None
            rois, objects = (x[: self._most_positive] for x in (regions.rois, regions.objects))
            covered = mask_targets(bitmaps, rois, objects, truth.boxes)
            return anchors, regions, (covered >= 0.5).astype(covered.dtype)

        truth = Truth(batch["boxes"], batch["labels"], batch["valid"])
        bitmaps = batch["masks"] if model.masks else None
        drawn: Targets = per_image(of_image, IMAGES_AT_ONCE)(
            keys, batch["size"], truth, proposals, bitmaps
        )
        return drawn

    @property
    def _most_positive(self) -> int:
        """The limit of the positive regions of an image, which come first."""
        return int(self.settings.roi_samples * self.settings.roi_positive_share)

    @property
    def _weights(self) -> dict[str, float]:
        settings = self.settings
        return {
            "loss_rpn_cls": settings.rpn_class_weight,
            "loss_rpn_bbox": settings.rpn_box_weight,
            "loss_cls": settings.class_weight,
            "loss_bbox": settings.box_weight,
            "loss_mask": settings.mask_weight,
        }


@per_device
def _sampled(
    predictions: Sequence[AnchorPredictions], indices: Int[Array, "B S"]
) -> tuple[Float[Array, "B S"], Float[Array, "B S 4"]]:
    """Returns the predictions for the sampled anchors."""
    logits = jnp.concatenate([x.logits for x in predictions], axis=1)
    deltas = jnp.concatenate([x.deltas for x in predictions], axis=1)
    return (
        jnp.take_along_axis(logits, indices, axis=1),
        jnp.take_along_axis(deltas, indices[..., None], axis=1),
    )
