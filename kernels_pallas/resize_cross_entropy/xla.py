"""Cross entropy of resized logits in plain XLA: one image at a time, for any sizes."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ..core.device import Device
from ..core.resize import Size, bilinear_matrix, multiply_axis
from .spec import ResizeCrossEntropySpec

PLATFORMS = None

_Sums = tuple[Array, Array, Array]  # loss, hits, pixels with a class


def supports(spec: ResizeCrossEntropySpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def run(
    spec: ResizeCrossEntropySpec, logits: Float[Array, "B h w K"], labels: UInt8[Array, "B H W"]
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Computes `kernels_pallas.resize_cross_entropy`."""
    loss, (hits, valid) = jax.lax.map(
        lambda image: _sums(spec, image[0].astype(spec.wide), image[1]), (logits, labels)
    )
    return loss, hits, valid


@run.defjvp
def _run_and_tangents(
    spec: ResizeCrossEntropySpec, arrays: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[_Sums, _Sums]:
    """Computes the sums and the gradient of each image in one pass over its pixels.

    The gradient has the size of the logits. It is kept, and nothing is recomputed in the backward
    pass: a sum's gradient is only multiplied by the cotangent of the sum.
    """
    logits, labels = arrays
    of_image = jax.value_and_grad(functools.partial(_sums, spec), has_aux=True)
    (loss, (hits, valid)), gradient = jax.lax.map(
        lambda image: of_image(image[0].astype(spec.wide), image[1]), (logits, labels)
    )
    change = jnp.sum(gradient * tangents[0].astype(spec.wide), axis=(1, 2, 3))
    return (loss, hits, valid), (change, jnp.zeros_like(hits), jnp.zeros_like(valid))


def _sums(
    spec: ResizeCrossEntropySpec, logits: Array, labels: Array
) -> tuple[Array, tuple[Array, Array]]:
    """Returns the sums of one image: the loss, and the hits and pixels with a class."""
    full = _resized(logits, labels.shape)
    top = jax.lax.stop_gradient(jnp.max(full, axis=-1, keepdims=True))
    classes = jnp.arange(spec.classes)
    target = labels.astype(classes.dtype)
    # Sums over classes instead of indexing: no gather, and no scatter in the gradient.
    shifted = full - top
    picked = jnp.sum(jnp.where(classes == target[..., None], shifted, 0), axis=-1)
    losses = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1)) - picked
    first = jnp.min(jnp.where(full == top, classes, spec.classes), axis=-1)
    valid = spec.labelled(labels)
    hits = jnp.sum(valid & (first == target), dtype=spec.wide)
    return jnp.sum(jnp.where(valid, losses, 0)), (hits, jnp.sum(valid, dtype=spec.wide))


def _resized(logits: Array, size: Size) -> Array:
    """Resizes the logits of an image by products with matrices.

    For a whole factor too, a CPU computes these and their transposes several times faster than sums
    of two neighbours.
    """
    full = logits[None]
    for axis, (source, target) in enumerate(zip(logits.shape[:2], size, strict=True), 1):
        if source != target:
            full = multiply_axis(bilinear_matrix(source, target), full, axis)
    return full[0]
