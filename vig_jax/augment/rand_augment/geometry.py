"""Geometric operations: affine maps of pixel positions, and Pillow's bicubic resampling."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from vig_jax.augment.rand_augment.operations import RAND_AUGMENT_OPS, Op

GEOMETRIC = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")
"""Names of the operations that move pixels."""

_SHIFTS = np.array([0, 8, 16], np.uint32)  # of red, green and blue in a packed pixel


def identities(count: int) -> Float[Array, "{count} 2 3"]:
    """Returns maps that move nothing."""
    return jnp.broadcast_to(jnp.eye(2, 3), (count, 2, 3))


def compose(first: Float[Array, "2 3"], second: Float[Array, "2 3"]) -> Float[Array, "2 3"]:
    """Returns the map of two operations, of which `first` is applied to the image first."""
    # From the output through the input of `second` to the input of `first`.
    linear = jnp.sum(first[:, :2, None] * second[None, :, :], axis=1)
    return linear.at[:, 2].add(first[:, 2])


def matrix(op: Op, *, height: int, width: int) -> Float[Array, "2 3"]:
    """Returns the affine map from positions in the output to positions in the input.

    Args:
        op: geometric, or another one, whose map is the identity.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        `matrix @ (x, y, 1)` is the position in the input, in pixels.
    """
    angle = jnp.deg2rad(op.argument)
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    one, zero, amount = jnp.ones(()), jnp.zeros(()), op.argument
    x, y = width / 2, height / 2
    matrices = {
        # Counter-clockwise about the centre.
        "Rotate": (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y),
        "ShearX": (one, amount, zero, zero, one, zero),
        "ShearY": (one, zero, zero, amount, one, zero),
        "TranslateXRel": (one, zero, amount, zero, one, zero),
        "TranslateYRel": (one, zero, zero, zero, one, amount),
    }
    identity = (one, zero, zero, zero, one, zero)
    names = [*RAND_AUGMENT_OPS, "Identity"]
    rows = jnp.stack([jnp.stack(matrices.get(name, identity)) for name in names])
    return rows[op.code].reshape(2, 3)


def warp(
    image: UInt8[Array, "H W 3"], matrix: Float[Array, "2 3"], fill: tuple[int, int, int]
) -> UInt8[Array, "H W 3"]:
    """Applies an affine map with Pillow's bicubic filter (a = -1, results truncated).

    Args:
        image: RGB pixels.
        matrix: from positions in the output to positions in the image, in pixels.
        fill: colour of pixels from outside of the image.
    """
    H, W, _ = image.shape
    y, x = jnp.mgrid[:H, :W].astype(jnp.result_type(float)) + 0.5
    from_x = matrix[0, 0] * x + matrix[0, 1] * y + matrix[0, 2]
    from_y = matrix[1, 0] * x + matrix[1, 1] * y + matrix[1, 2]
    outside = (from_x < 0) | (from_x >= W) | (from_y < 0) | (from_y >= H)
    left, top = jnp.floor(from_x - 0.5), jnp.floor(from_y - 0.5)
    dx, dy = (from_x - 0.5 - left)[..., None], (from_y - 0.5 - top)[..., None]
    columns = [jnp.clip(left.astype(jnp.int32) + i, 0, W - 1) for i in (-1, 0, 1, 2)]
    rows = [jnp.clip(top.astype(jnp.int32) + i, 0, H - 1) for i in (-1, 0, 1, 2)]
    # A pixel is packed into one number: sixteen loads for each output pixel instead of 48. The
    # barrier makes XLA pack once, not at each load.
    red, green, blue = jnp.moveaxis(image.astype(jnp.uint32), -1, 0)
    pixels = jax.lax.optimization_barrier((red | green << 8 | blue << 16).reshape(-1))

    def at(row, column):
        pixel = pixels.at[row * W + column].get(mode="promise_in_bounds")
        return (pixel[..., None] >> _SHIFTS & 255).astype(jnp.float32)

    lines = [_cubic([at(row, column) for column in columns], dx) for row in rows]
    value = jnp.clip(_cubic(lines, dy), 0, 255).astype(jnp.uint8)
    return jnp.where(outside[..., None], jnp.asarray(fill, jnp.uint8), value)


def _cubic(values: Sequence[Array], d: Array) -> Array:
    """Interpolates Pillow's cubic through four values, at d in [0, 1) between the middle ones."""
    v1, v2, v3, v4 = values
    p3 = -v1 + v2 - v3 + v4
    p2 = 2 * (v1 - v2) + v3 - v4
    return v2 + d * (-v1 + v3 + d * (p2 + d * p3))
