"""Cross entropy of resized logits by its formula: all implementations are compared with it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ..core.device import Device
from .spec import ResizeCrossEntropySpec

PLATFORMS = None


def supports(spec: ResizeCrossEntropySpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: ResizeCrossEntropySpec, logits: Float[Array, "B h w K"], labels: UInt8[Array, "B H W"]
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Computes `kernels_pallas.resize_cross_entropy`."""
    size = (spec.batch, spec.height, spec.width, spec.classes)
    full = jax.image.resize(logits.astype(spec.wide), size, "bilinear", antialias=False)
    valid = spec.labelled(labels)
    target = jnp.where(valid, labels, 0).astype(jnp.int32)
    log_p = jax.nn.log_softmax(full, axis=-1)
    losses = -jnp.take_along_axis(log_p, target[..., None], axis=-1)[..., 0]
    hits = valid & (jnp.argmax(full, axis=-1) == target)
    loss = jnp.sum(jnp.where(valid, losses, 0), axis=(1, 2))
    return (
        loss,
        jnp.sum(hits, axis=(1, 2), dtype=spec.wide),
        jnp.sum(valid, axis=(1, 2), dtype=spec.wide),
    )
