"""The public operator: its definition, its argument checks and its implementations."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from . import pallas_triton, reference, xla
from .spec import ResizeCrossEntropySpec

_TABLE = implementations({"pallas_triton": pallas_triton, "xla": xla, "reference": reference})

IMPLEMENTATIONS: tuple[str, ...] = tuple(_TABLE)
"""Names that `implementation=` accepts, best first."""


def resize_cross_entropy(
    logits: Float[Array, "B h w K"],
    labels: UInt8[Array, "B H W"],
    *,
    ignore: int = 255,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Computes the cross entropy of logits that are resized bilinearly to the labels' size.

    With z the logits, resized as PyTorch's `interpolate(mode="bilinear", align_corners=False)`, and
    sums over the pixels of an image whose label is a class::

        loss  = sum(log(sum(exp(z))) - z[label])
        hits  = sum(argmax(z) == label)
        valid = sum(1)

    Resized logits never exist for the whole batch. Everything is float32, or float64 for float64.
    The loss is differentiable in the logits. Source: mmsegmentation, `cross_entropy` in
    `models/losses/cross_entropy_loss.py` after the `resize` of `decode_heads/decode_head.py`.

    Args:
        logits: float32, bfloat16, float16 or float64; any rows and columns.
        labels: Class of each pixel. Pixels with another label than 0 to K - 1 do not count.
        ignore: A label from 0 to 255 whose pixels do not count either.
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.resize_cross_entropy.IMPLEMENTATIONS`, or several names to try
            in order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        For each image, float32 (float64 for float64): the loss in nats, summed over pixels, the
        pixels whose label has the largest logit (the first one of equals), and the pixels that
        count. The last two are numbers of pixels, exact up to 2**24 for float32.

    Raises:
        TypeError: An argument is not an array or has a type not listed above, `ignore` is no
            integer, or the config does not belong to the implementation.
        ValueError: Shapes do not fit together, `ignore` is no uint8, or an implementation is
            unknown.
        NotImplementedError: The implementation that was named cannot serve this call.
    """
    logits = checked_array("logits", logits)
    if not isinstance(labels, jax.Array | np.ndarray):
        raise TypeError(f"labels must be a JAX or numpy array, got {type(labels).__name__}")
    labels = jnp.asarray(labels)
    if labels.dtype != jnp.uint8:
        raise TypeError(f"labels must be uint8, got {labels.dtype}: cast")
    if logits.ndim != 4 or 0 in logits.shape[1:]:
        raise ValueError(
            "logits must have four axes [batch, rows, columns, classes], all but the first of at "
            f"least 1, got shape {logits.shape}"
        )
    if labels.ndim != 3 or 0 in labels.shape[1:] or labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels must have three axes [batch, rows, columns], a batch of {logits.shape[0]} as "
            f"the logits and sides of at least 1, got shape {labels.shape}"
        )
    if not isinstance(ignore, int | np.integer):
        raise TypeError(f"ignore must be an integer, got {type(ignore).__name__}")
    if not 0 <= ignore <= 255:
        raise ValueError(f"ignore must be from 0 to 255, the values of uint8, got {ignore}")
    batch, rows, columns, classes = logits.shape
    _, height, width = labels.shape
    spec = ResizeCrossEntropySpec(
        batch, rows, columns, height, width, classes, int(ignore), logits.dtype
    )
    return dispatch(
        "resize_cross_entropy",
        spec,
        (logits, labels),
        implementation=implementation,
        config=config,
        table=_TABLE,
    )
