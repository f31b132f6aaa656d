"""The loss of semantic segmentation: cross-entropy of logits that are resized to the labels."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from kernels_pallas import resize_cross_entropy
from vig_jax.sharding.kernels import ROWS, shard_kernel

IGNORED = 255  # label of pixels that do not count
_EPSILON = float(np.finfo(np.float32).eps)  # mmsegmentation's, against a division by zero


def segmentation_loss(
    logits: Float[Array, "B h w K"], labels: UInt8[Array, "B H W"], avg_non_ignore: bool = False
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Returns the mean cross-entropy of a batch, and the pixel accuracy.

    Logits of the labels' size never exist for the batch: see `kernels_pallas.resize_cross_entropy`.
    Each device computes the sums of its images. Source: mmsegmentation
    `models/losses/cross_entropy_loss.py` and `loss_by_feat` in `decode_heads/decode_head.py`.

    Args:
        logits: of any size; they are resized bilinearly. Losses are float32 or wider.
        labels: class of each pixel, or 255: the pixel has no loss.
        avg_non_ignore: average over the pixels with a class instead of all pixels of the batch.

    Returns:
        The loss in nats, and the percentage of pixels with a class for which it has the largest
        logit. If no pixel has a class, the loss is 0 and the percentage 100, as in mmsegmentation.
    """
    entropy = functools.partial(resize_cross_entropy, ignore=IGNORED)
    sums = shard_kernel(entropy, (ROWS, ROWS), (ROWS, ROWS, ROWS))
    total, hits, valid = (jnp.sum(x) for x in sums(logits, labels))
    counted = valid if avg_non_ignore else jnp.full_like(valid, labels.size)
    return total / (counted + _EPSILON), 100 * (hits + _EPSILON) / (valid + _EPSILON)
