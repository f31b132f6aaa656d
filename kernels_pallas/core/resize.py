"""Bilinear resizing of maps in plain XLA.

Sizes are static, so each axis is resized by a constant matrix, or by a whole factor with two
neighbours per position.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float

from .choice import only_portable
from .types import float32_or_wider

Size = tuple[int, ...]  # rows, columns


def bilinear_matrix(source: int, target: int) -> np.ndarray:
    """Returns the `[target, source]` float64 matrix that resizes one axis.

    It equals PyTorch's `interpolate(mode="bilinear", align_corners=False)`: half-pixel centres,
    border pixels repeated, no antialiasing.
    """
    centres = np.maximum((np.arange(target) + 0.5) * (source / target) - 0.5, 0.0)
    low = np.minimum(centres.astype(int), source - 1)
    high = np.minimum(low + 1, source - 1)
    matrix, rows = np.zeros((target, source)), np.arange(target)
    matrix[rows, low] += 1 - (centres - low)
    matrix[rows, high] += centres - low
    return matrix


def resize_bilinear(x: Float[Array, "B h w C"], size: Size) -> Float[Array, "B H W C"]:
    """Resizes maps to `size`, as PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

    Args:
        x: maps of any size.
        size: rows and columns of the result; an axis may grow while the other shrinks.

    Returns:
        The resized maps in `x`'s dtype. Sums are float32 or wider; where an axis grows by a whole
        factor no product is involved, and neither is a scatter in its gradient.
    """
    axes = sorted((1, 2), key=lambda axis: size[axis - 1] / x.shape[axis])  # the largest last
    for axis in axes:
        source, target = x.shape[axis], size[axis - 1]
        if target == source:
            continue
        if target % source == 0:
            x = _enlarge(x, axis, target // source)
        else:
            x = multiply_axis(bilinear_matrix(source, target), x, axis)
    return x


def multiply_axis(
    matrix: np.ndarray, x: Float[Array, "B h w C"], axis: int
) -> Float[Array, "B H W C"]:
    """Multiplies an axis of maps, 1 (rows) or 2 (columns), by a constant matrix.

    The matrix is repeated for every image or row. GPUs then multiply batches of contiguous
    matrices, where a product without batch axes would transpose the maps before and after.
    """
    constant = jnp.asarray(matrix, x.dtype)
    # Never TF32 for float32.
    exact = None if jnp.finfo(x.dtype).bits < 32 else jax.lax.Precision.HIGHEST
    explicit = jax.typeof(x).sharding.spec[:axis]  # all None if XLA splits arrays
    repeated = jnp.broadcast_to(
        constant,
        (*x.shape[:axis], *constant.shape),
        out_sharding=PartitionSpec(*explicit) if any(explicit) else None,
    )
    if axis == 1:
        flat = x.reshape(*x.shape[:2], -1)
        out = jnp.einsum("bts,bsn->btn", repeated, flat, precision=exact)
        return out.reshape(x.shape[0], matrix.shape[0], *x.shape[2:])
    return jnp.einsum("bhts,bhsc->bhtc", repeated, x, precision=exact)


def _enlarge(x: jax.Array, axis: int, factor: int) -> jax.Array:
    """Enlarges an axis of maps by a whole factor.

    Position f i + p of the result lies at i + (p + 1/2) / f - 1/2: between i and a neighbour, which
    is repeated at the border. XLA fuses pads, which it would not do with concatenations.
    """
    offset = (np.arange(factor) + 0.5) / factor - 0.5
    n, wide = x.shape[axis], float32_or_wider(x.dtype)
    position = jax.lax.broadcasted_iota(jnp.int32, (n, *[1] * (x.ndim - axis - 1)), 0)

    def phases(values: np.ndarray) -> np.ndarray:
        return np.expand_dims(values, tuple(range(1, x.ndim - axis)))

    def shifted(by: int, border: int) -> jax.Array:
        """Returns x moved by a position, and itself at a border."""
        edges = [(0, 0, 0)] * x.ndim
        edges[axis] = (by, -by, 0)
        if only_portable():  # other formats have no negative pads
            moved = jnp.roll(x, by, axis)
        else:
            moved = jax.lax.pad(x, jnp.zeros((), x.dtype), edges)
        return jnp.where(position == border, x, moved)

    before, after, centre = (
        jnp.expand_dims(y, axis + 1) for y in (shifted(1, 0), shifted(-1, n - 1), x)
    )
    neighbour = jnp.where(phases(offset < 0), before, after).astype(wide)
    weight = jnp.asarray(phases(np.abs(offset)), wide)
    out = centre.astype(wide) * (1 - weight) + neighbour * weight
    return out.astype(x.dtype).reshape(*x.shape[:axis], n * factor, *x.shape[axis + 1 :])
