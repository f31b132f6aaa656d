"""Learned absolute position embedding, resized to the grid of the image at hand."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from kernels_pallas.core.types import float32_or_wider


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


def resize_pos_embed_to_sizes(
    pos_embed: Float[Array, "1 N D"], sizes: Int[Array, "B 2"], grid: Sequence[int]
) -> Float[Array, "B h w D"]:
    """Resizes a square position embedding to the valid part of each padded map.

    Args:
        pos_embed: as for `resize_pos_embed`.
        sizes: rows and columns of the valid part, the top-left one, of each map.
        grid: rows and columns of the padded maps.

    Returns:
        What `resize_pos_embed` returns for each size, and zeros in the padding.
    """
    side = math.isqrt(pos_embed.shape[1])
    table = pos_embed.reshape(side, side, -1)
    dtype = float32_or_wider(table.dtype)
    rows, columns = (
        _bicubic_matrices(side, sizes[:, axis], grid[axis], dtype).astype(table.dtype)
        for axis in (0, 1)
    )
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("bhi,bwj,ijd->bhwd", rows, columns, table, precision=highest)


def resize_pos_embed_at(
    pos_embed: Float[Array, "1 N D"],
    sizes: tuple[Int[Array, "R T"], Int[Array, "R T"]],
    positions: tuple[Int[Array, "R T"], Int[Array, "R T"]],
) -> Float[Array, "R T D"]:
    """Resizes a square position embedding for tokens of grids of different sizes.

    Args:
        pos_embed: as for `resize_pos_embed`.
        sizes: rows and columns of each token's grid.
        positions: row and column of each token.

    Returns:
        For each token what `resize_pos_embed` returns for its grid; zero outside of the grid.
    """
    side = math.isqrt(pos_embed.shape[1])
    dtype = float32_or_wider(pos_embed.dtype)
    rows, columns = (
        _bicubic_weights(side, size, position, dtype).astype(pos_embed.dtype)
        for size, position in zip(sizes, positions, strict=True)
    )
    weights = (rows[..., None] * columns[..., None, :]).reshape(*rows.shape[:2], side * side)
    return jnp.dot(weights, pos_embed[0], precision=jax.lax.Precision.HIGHEST)


def _bicubic_matrices(
    source: int, targets: Int[Array, " B"], length: int, dtype: np.dtype
) -> Float[Array, "B length source"]:
    """Returns `bicubic_matrix(source, target)` for each target, with zero rows up to `length`."""
    position = jnp.arange(length, dtype=targets.dtype)
    wide, position = jnp.broadcast_arrays(targets[:, None], position)
    return _bicubic_weights(source, wide, position, dtype)


def _bicubic_weights(
    source: int, targets: Int[Array, "B T"], position: Int[Array, "B T"], dtype: np.dtype
) -> Float[Array, "B T source"]:
    """Returns the row `position` of `bicubic_matrix(source, target)` for each target.

    It is zero for a position outside of the target.
    """
    a = -0.75
    target = jnp.maximum(targets, 1)
    # In integers, (i + 0.5) * source / target - 0.5 has an exact floor and an exact remainder.
    centre, remainder = jnp.divmod((2 * position + 1) * source - target, 2 * target)
    fraction = remainder.astype(dtype) / (2 * target).astype(dtype)
    weights = jnp.zeros((*targets.shape, source), dtype)
    for tap in range(-1, 3):
        d = jnp.abs(fraction - tap)
        if tap in (0, 1):
            weight = ((a + 2) * d - (a + 3)) * d * d + 1
        else:
            weight = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
        column = jnp.clip(centre + tap, 0, source - 1)
        weights += weight[..., None] * jax.nn.one_hot(column, source, dtype=dtype)
    return jnp.where((position < targets)[..., None], weights, 0)
