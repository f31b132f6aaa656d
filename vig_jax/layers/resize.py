"""Resizing and pooling of maps, and convolutions of resized maps.

Sizes are static, so each axis is resized by a constant matrix, or by a whole factor with two
neighbours per position.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.core.types import float32_or_wider
from vig_jax.layers.linear import precision

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


def pooling_matrix(source: int, target: int) -> np.ndarray:
    """Returns the `[target, source]` float64 matrix of adaptive average pooling of one axis.

    Bin i covers floor(i n / s) up to ceil((i + 1) n / s) for s bins over n positions, as in
    PyTorch: bins overlap if s does not divide n, and repeat positions if s is larger than n.
    """
    matrix = np.zeros((target, source))
    for i in range(target):
        first, end = i * source // target, -(-(i + 1) * source // target)
        matrix[i, first:end] = 1 / (end - first)
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
            x = _product(bilinear_matrix(source, target), x, axis)
    return x


def adaptive_avg_pool(x: Float[Array, "B h w C"], size: int) -> Float[Array, "B s s C"]:
    """Averages maps over `size` x `size` bins, as PyTorch's `AdaptiveAvgPool2d`.

    Means are computed in float32 or wider; the result has `x`'s dtype.
    """
    pooled = x.astype(float32_or_wider(x.dtype))
    for axis in (1, 2):
        pooled = _product(pooling_matrix(x.shape[axis], size), pooled, axis)
    return pooled.astype(x.dtype)


def resize_conv(
    maps: Sequence[Float[Array, "B _ _ _"]],
    kernel: Float[Array, "3 3 I O"],
    size: Size,
    *,
    implementation: str = "separate",
) -> Float[Array, "B H W O"]:
    """Resizes maps to `size` and convolves their concatenation; zero padding of 1.

    The convolution and the resizing are linear, so they can change places. "separate" first
    multiplies a small map by the nine taps of its slice of the kernel, at its resolution, and then
    resizes each product, shifted by its tap. A map for which that costs more, such as one that has
    `size` already, is resized and convolved. Neither makes the concatenation of all maps.

    Args:
        maps: maps of any sizes, whose channels add up to I.
        kernel: in the dtype of the maps.
        size: rows and columns of the result.
        implementation: "separate", or "direct": resize, concatenate, convolve.

    Returns:
        The convolution in the dtype of the maps, equal for both implementations up to rounding.

    Raises:
        ValueError: an unknown implementation.
    """
    if implementation not in ("separate", "direct"):
        raise ValueError(f"implementation={implementation!r} must be 'separate' or 'direct'")
    ends = np.cumsum([x.shape[-1] for x in maps])
    kernels = jnp.split(kernel, ends[:-1], axis=2)
    terms, direct = [], []
    for x, part in zip(maps, kernels, strict=True):
        if implementation == "separate" and is_separated(x.shape[1:3], size, *part.shape[2:]):
            terms.append(_separated(x, part, size))
        else:
            direct.append((resize_bilinear(x, size), part))
    if direct:
        resized, parts = zip(*direct, strict=True)
        terms.append(_conv(_joined(resized, 3), _joined(parts, 2)))
    wide = float32_or_wider(terms[0].dtype)
    return sum((x.astype(wide) for x in terms[1:]), terms[0].astype(wide)).astype(terms[0].dtype)


def is_separated(source: Size, size: Size, channels: int, features: int) -> bool:
    """Returns whether `resize_conv` multiplies a map of size `source` before it resizes it."""
    return separated_macs(source, size, channels, features) < direct_macs(size, channels, features)


def direct_macs(size: Size, channels: int, features: int) -> int:
    """Returns the multiply-accumulates of a 3x3 convolution to `size`, padding included."""
    return size[0] * size[1] * 9 * channels * features


def separated_macs(source: Size, size: Size, channels: int, features: int) -> int:
    """Returns the multiply-accumulates of one map in the "separate" form of `resize_conv`."""
    (h, w), (H, W) = source, size
    return features * (h * w * 9 * channels + h * W * 9 * w + H * W * 3 * h)


def _joined(arrays: Sequence[jax.Array], axis: int) -> jax.Array:
    return arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays, axis)


def _conv(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with zero padding of 1."""
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=precision(x.dtype),
    )


def _separated(x: jax.Array, kernel: jax.Array, size: Size) -> jax.Array:
    """Computes the convolution of one resized map, taps first."""
    B, h, w, C = x.shape
    (H, W), features = size, kernel.shape[-1]
    taps = kernel.transpose(2, 1, 0, 3).reshape(C, -1)  # a column per (kx, ky, feature)
    products = jnp.dot(x, taps, precision=precision(x.dtype))
    rows = products.reshape(B, h, w * 3, 3 * features)
    rows = _product(_shifted(w, W), rows, 2)  # [B, h, W, (ky, feature)]
    rows = rows.reshape(B, h, W, 3, features).swapaxes(2, 3).reshape(B, h * 3, W, features)
    return _product(_shifted(h, H), rows, 1)


def _shifted(source: int, target: int) -> np.ndarray:
    """Returns the `[target, source * 3]` matrix that resizes, shifts and adds the taps of an axis.

    Tap k of position r reads row r + k - 1 of the resized axis. Rows outside are zero: the padding.
    """
    padded = np.pad(bilinear_matrix(source, target), ((1, 1), (0, 0)))
    return np.stack([padded[k : k + target] for k in range(3)], axis=-1).reshape(target, -1)


def _product(matrix: np.ndarray, x: jax.Array, axis: int) -> jax.Array:
    """Multiplies an axis of maps, 1 (rows) or 2 (columns), by a constant matrix.

    The matrix is repeated for every image or row. GPUs then multiply batches of contiguous
    matrices, where a product without batch axes would transpose the maps before and after.
    """
    constant = jnp.asarray(matrix, x.dtype)
    exact = precision(x.dtype)
    batch = x.shape[:axis]
    repeated = jnp.broadcast_to(constant, (*batch, *constant.shape))
    if axis == 1:
        flat = x.reshape(*x.shape[:2], -1)
        out = jnp.einsum("bts,bsn->btn", repeated, flat, precision=exact)
        return out.reshape(x.shape[0], matrix.shape[0], *x.shape[2:])
    return jnp.einsum("bhts,bhsc->bhtc", repeated, x, precision=exact)


def _enlarge(x: jax.Array, axis: int, factor: int) -> jax.Array:
    """Enlarges an axis of maps by a whole factor.

    Position f i + p of the result lies at i + (p + 1/2) / f - 1/2: between i and a neighbour, which
    is repeated at the border.
    """
    offset = (np.arange(factor) + 0.5) / factor - 0.5
    n, wide = x.shape[axis], float32_or_wider(x.dtype)

    def phases(values: np.ndarray) -> np.ndarray:
        return np.expand_dims(values, tuple(range(1, x.ndim - axis)))

    def part(first: int, end: int) -> jax.Array:
        return jax.lax.slice_in_dim(x, first, end, axis=axis)

    before = jnp.concatenate([part(0, 1), part(0, n - 1)], axis)
    after = jnp.concatenate([part(1, n), part(n - 1, n)], axis)
    before, after, centre = (jnp.expand_dims(y, axis + 1) for y in (before, after, x))
    neighbour = jnp.where(phases(offset < 0), before, after).astype(wide)
    weight = jnp.asarray(phases(np.abs(offset)), wide)
    out = centre.astype(wide) * (1 - weight) + neighbour * weight
    return out.astype(x.dtype).reshape(*x.shape[:axis], n * factor, *x.shape[axis + 1 :])
