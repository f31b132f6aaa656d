"""Learned absolute position embedding, resized to the grid of the image at hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def bicubic_matrix(source: int, target: int) -> np.ndarray:
    """Returns the `[target, source]` float64 matrix that resizes one axis.

    It equals PyTorch's `interpolate(mode="bicubic", align_corners=False)`: cubic with a = -0.75,
    half-pixel centres, border pixels repeated, no antialiasing.
    """
    a = -0.75
    matrix = np.zeros((target, source))
    for i in range(target):
        centre = (i + 0.5) * source / target - 0.5
        base = math.floor(centre)
        for tap in range(base - 1, base + 3):
            d = abs(centre - tap)
            if d <= 1:
                weight = ((a + 2) * d - (a + 3)) * d * d + 1
            else:
                weight = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            matrix[i, min(max(tap, 0), source - 1)] += weight
    return matrix


def resize_pos_embed(
    pos_embed: Float[Array, "1 N D"], grid: tuple[int, int]
) -> Float[Array, "1 h w D"]:
    """Resizes a square position embedding to `grid` = (h, w) and unrolls it into a map.

    Args:
        pos_embed: embedding of a square grid of N = n * n tokens, row-major.
        grid: the number of rows and columns; (n, n) returns the embedding unchanged.

    Returns:
        The embedding at `grid`, in `pos_embed`'s dtype.
    """
    side = math.isqrt(pos_embed.shape[1])
    table = pos_embed.reshape(1, side, side, -1)
    if grid == (side, side):
        return table
    rows = jnp.asarray(bicubic_matrix(side, grid[0]), table.dtype)
    cols = jnp.asarray(bicubic_matrix(side, grid[1]), table.dtype)
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("hi,wj,bijd->bhwd", rows, cols, table, precision=highest)
