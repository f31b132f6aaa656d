"""Losses of Mask R-CNN on drawn samples. Padded samples have no influence."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vig_jax.heads.roi import class_maps
from vig_jax.ops.boxes import wide
from vig_jax.tasks.losses import cross_entropy


def rpn_loss(
    logits: Float[Array, "B S"],
    deltas: Float[Array, "B S 4"],
    targets: Float[Array, "B S 4"],
    positive: Bool[Array, "B S"],
    valid: Bool[Array, "B S"],
    beta: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the losses of the region proposal network: binary cross-entropy and deltas.

    Both are sums over the samples of all images, divided by the number of samples, where an image
    has at least one positive and one negative (mmdet).

    Args:
        logits: of the sampled anchors.
        deltas: of the sampled anchors.
        targets: deltas of the boxes that belong to positive anchors.
        positive: which samples are positive.
        valid: which samples are real.
        beta: see `absolute`.
    """
    per_image = [jnp.sum(x, axis=1) for x in (positive, valid & ~positive)]
    count = jnp.sum(sum(jnp.maximum(x, 1) for x in per_image))
    objectness = binary_cross_entropy(logits, positive)
    return _mean(objectness, valid, count), _mean(_distance(deltas, targets, beta), positive, count)


def box_loss(
    logits: Float[Array, "B S classes"],
    deltas: Float[Array, "B S K 4"],
    labels: Int[Array, "B S"],
    targets: Float[Array, "B S 4"],
    positive: Bool[Array, "B S"],
    valid: Bool[Array, "B S"],
    beta: float = 0.0,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the losses of the box head: cross-entropy and deltas of the true class.

    Both are divided by the number of all samples, the second one too, although only positive
    samples have a box.

    Args:
        logits: K classes and the background.
        deltas: for each class.
        labels: 0 to K - 1, or K for background.
        targets: deltas of the boxes that belong to positive samples.
        positive: which samples are positive.
        valid: which samples are real.
        beta: see `absolute`.
    """
    count = jnp.sum(valid)
    classes = cross_entropy(logits.reshape(-1, logits.shape[-1]), labels.ravel())
    own = jnp.minimum(labels, deltas.shape[2] - 1)[..., None, None]
    chosen = jnp.take_along_axis(deltas, own, axis=2)[:, :, 0]
    distance = _distance(chosen, targets, beta)
    return _mean(classes.reshape(labels.shape), valid, count), _mean(distance, positive, count)


def mask_loss(
    logits: Float[Array, "B P h w K"],
    targets: Float[Array, "B P h w"] | Bool[Array, "B P h w"],
    labels: Int[Array, "B P"],
    positive: Bool[Array, "B P"],
) -> Float[Array, ""]:
    """Returns the loss of the mask head: binary cross-entropy of the true class's map.

    It is the mean over positive samples and pixels; 0 without positive samples.

    Args:
        logits: a map for each class.
        targets: the mask of the box that belongs to a sample.
        labels: 0 to K - 1; any value where a sample is not positive.
        positive: which samples are positive.
    """
    losses = binary_cross_entropy(class_maps(logits, labels), targets)
    per_sample = jnp.mean(losses, axis=(2, 3))
    return _mean(per_sample, positive, jnp.sum(positive))


def binary_cross_entropy(
    logits: Float[Array, "*N"], targets: Float[Array, "*N"] | Bool[Array, "*N"]
) -> Float[Array, "*N"]:
    """Returns the cross-entropy of each logit against a probability, in float32 or wider."""
    logits = wide(logits)
    return jax.nn.softplus(logits) - logits * targets.astype(logits.dtype)


def absolute(difference: Float[Array, "*N"], beta: float) -> Float[Array, "*N"]:
    """Returns absolute values.

    Args:
        difference: any values.
        beta: values x nearer to 0 than this become x^2 / (2 beta), and beta / 2 is subtracted from
            others: smooth L1 as in torchvision, where it is 1/9. 0: no change (mmdet).
    """
    size = jnp.abs(difference)
    if not beta:
        return size
    return jnp.where(size < beta, size * size / (2 * beta), size - beta / 2)


def _distance(deltas: jax.Array, targets: jax.Array, beta: float) -> jax.Array:
    return jnp.sum(absolute(wide(deltas) - targets, beta), axis=-1)


def _mean(values: jax.Array, chosen: jax.Array, count: jax.Array) -> jax.Array:
    """Returns the sum of the chosen values over `count`, which is at least 1 here."""
    return jnp.sum(jnp.where(chosen, values, 0)) / jnp.maximum(count, 1).astype(values.dtype)
