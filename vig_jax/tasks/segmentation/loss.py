"""The loss of semantic segmentation: cross-entropy of logits that are resized to the labels."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from kernels_pallas.core.resize import resize_bilinear
from kernels_pallas.core.types import float32_or_wider
from vig_jax.sharding.kernels import ROWS, shard_kernel

IGNORED = 255  # label of pixels that do not count
_EPSILON = float(np.finfo(np.float32).eps)  # mmsegmentation's, against a division by zero


def segmentation_loss(
    logits: Float[Array, "B h w K"], labels: UInt8[Array, "B H W"], avg_non_ignore: bool = False
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the mean cross-entropy of a batch, and the pixel accuracy.

    Logits of the labels' size exist for one image at a time, and the backward pass recomputes them.
    Each device computes those of its images. Source: mmsegmentation
    `models/losses/cross_entropy_loss.py` and `loss_by_feat` in `decode_heads/decode_head.py`.

    Args:
        logits: of any size; they are resized bilinearly. Losses are float32 or wider.
        labels: class of each pixel, or 255: the pixel has no loss.
        avg_non_ignore: average over the pixels with a class instead of all pixels of the batch.

    Returns:
        The loss in nats, and the percentage of pixels with a class for which it has the largest
        logit. If no pixel has a class, the loss is 0 and the percentage 100, as in mmsegmentation.
    """
    sums = shard_kernel(_sums, (ROWS, ROWS), (ROWS, ROWS, ROWS))
    total, hits, valid = (jnp.sum(x) for x in sums(logits, labels))
    counted = valid if avg_non_ignore else jnp.full_like(valid, labels.size)
    return total / (counted + _EPSILON), 100 * (hits + _EPSILON) / (valid + _EPSILON)


def _sums(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, ...]:
    """Returns for each image [B] its summed loss, correct pixels and pixels with a class."""
    return jax.lax.map(jax.checkpoint(_sums_of_image), (logits, labels))


def _sums_of_image(image: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    logits, labels = image
    wide = float32_or_wider(logits.dtype)
    full = resize_bilinear(logits[None].astype(wide), labels.shape)[0]
    top = jax.lax.stop_gradient(jnp.max(full, axis=-1, keepdims=True))
    classes = jnp.arange(full.shape[-1])
    target = labels.astype(classes.dtype)
    # Sums over classes instead of indexing: no gather, and no scatter in the gradient.
    picked = jnp.sum(jnp.where(classes == target[..., None], full, 0), axis=-1)
    losses = jnp.log(jnp.sum(jnp.exp(full - top), axis=-1)) + top[..., 0] - picked
    first = jnp.min(jnp.where(full == top, classes, full.shape[-1]), axis=-1)
    valid = target != IGNORED
    return (
        jnp.sum(jnp.where(valid, losses, 0)),
        jnp.sum(valid & (first == target), dtype=wide),
        jnp.sum(valid, dtype=wide),
    )
