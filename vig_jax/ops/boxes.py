"""Boxes: coding as deltas, clipping, areas, overlaps.

A box is x1, y1, x2, y2 in pixels and continuous: a box of one pixel is 1 wide. Coordinates are
float32 or wider, because bfloat16 has steps of 8 pixels at 1333.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from kernels_pallas.core.types import float32_or_wider

Stds = tuple[float, float, float, float]  # of dx, dy, dw, dh
UNIT_STDS: Stds = (1.0, 1.0, 1.0, 1.0)
MAX_LOG_RATIO = math.log(1000 / 16)  # limit of dw and dh in decoding


def wide(x: Shaped[Array, "..."]) -> Float[Array, "..."]:
    """Returns an array in float64 if it is float64, else in float32."""
    return x.astype(float32_or_wider(x.dtype))


def encode(
    boxes: Float[Array, "*#N 4"], targets: Float[Array, "*#N 4"], stds: Stds = UNIT_STDS
) -> Float[Array, "*_ 4"]:
    """Returns the deltas dx, dy, dw, dh that turn boxes into targets.

    A width or height that is not positive counts as 1, in boxes and in targets. Padded rows then
    have finite deltas and gradients.

    Args:
        boxes: anchors or proposals.
        targets: the boxes to reach.
        stds: the deltas are divided by these.

    Returns:
        Shifts of the centre over the size of the box, and logarithms of the ratios of sizes.
    """
    centre, size = _centre_and_size(wide(boxes))
    target_centre, target_size = _centre_and_size(wide(targets))
    size, target_size = (jnp.where(x > 0, x, 1) for x in (size, target_size))
    shift, ratio = (target_centre - centre) / size, jnp.log(target_size / size)
    deltas = jnp.concatenate([shift, ratio], -1)
    return deltas / jnp.asarray(stds, deltas.dtype)


def decode(
    boxes: Float[Array, "*#N 4"],
    deltas: Float[Array, "*#N 4"],
    stds: Stds = UNIT_STDS,
    *,
    clamp_below: bool = True,
) -> Float[Array, "*_ 4"]:
    """Returns the boxes that deltas turn boxes into; the inverse of `encode`.

    Args:
        boxes: anchors or proposals.
        deltas: dx, dy, dw, dh.
        stds: the deltas are multiplied by these.
        clamp_below: whether dw and dh are at least -log(1000 / 16), as in mmdet. They are at most
            log(1000 / 16) in any case. False: as in torchvision and detectron2.
    """
    deltas = wide(deltas)
    deltas = deltas * jnp.asarray(stds, deltas.dtype)
    centre, size = _centre_and_size(wide(boxes))
    lowest = -MAX_LOG_RATIO if clamp_below else -math.inf
    half = size * jnp.exp(jnp.clip(deltas[..., 2:], lowest, MAX_LOG_RATIO)) / 2
    centre = centre + deltas[..., :2] * size
    return jnp.concatenate([centre - half, centre + half], -1)


def clip(
    boxes: Float[Array, "*N 4"], size: Float[Array, "2"] | Int[Array, "2"]
) -> Float[Array, "*N 4"]:
    """Returns boxes cut to an image.

    Args:
        boxes: any boxes. One outside of the image becomes a box without area.
        size: height and width of the image, pixels.
    """
    height, width = size.astype(boxes.dtype)
    return jnp.clip(boxes, 0, jnp.stack([width, height, width, height]))


def area(boxes: Float[Array, "*N 4"]) -> Float[Array, "*N"]:
    """Returns width times height."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def sides_above(
    boxes: Float[Array, "*N 4"], least: float = 0.0, *, strict: bool = True
) -> Bool[Array, "*N"]:
    """Returns which boxes are wide and high enough.

    Args:
        boxes: any boxes.
        least: pixels.
        strict: whether a side must be larger than `least`, as in mmdet, or may be equal, as in
            torchvision.
    """
    sides = boxes[..., 2:] - boxes[..., :2]
    return jnp.all(sides > least if strict else sides >= least, -1)


def iou(
    a: Float[Array, "N 4"], b: Float[Array, "M 4"], least_union: float = 1e-6
) -> Float[Array, "N M"]:
    """Returns the intersection over union of each pair, in float32 or wider.

    On a GPU, XLA's division of float32 has an error of up to two units in the last place: a pair
    whose IoU is a threshold exactly can fall on either side of it.

    Args:
        a: boxes.
        b: boxes.
        least_union: least divisor. Two boxes without area then have IoU 0, as in mmdet. With 0 it
            is NaN, as in torchvision.
    """
    a, b = wide(a), wide(b)
    overlap = _intersection(a, b)
    union = area(a)[:, None] + area(b) - overlap
    return overlap / jnp.maximum(union, least_union)


def iof(
    a: Float[Array, "N 4"], b: Float[Array, "M 4"], least_area: float = 1e-6
) -> Float[Array, "N M"]:
    """Returns the intersection over the area of the box of `a`, for each pair."""
    a, b = wide(a), wide(b)
    return _intersection(a, b) / jnp.maximum(area(a), least_area)[:, None]


def _intersection(a: jax.Array, b: jax.Array) -> jax.Array:
    low = jnp.maximum(a[:, None, :2], b[:, :2])
    high = jnp.minimum(a[:, None, 2:], b[:, 2:])
    sides = jnp.maximum(high - low, 0)
    return sides[..., 0] * sides[..., 1]


def _centre_and_size(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, high - low
