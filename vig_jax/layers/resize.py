"""Pooling of maps, and convolutions of maps that are resized bilinearly."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.core.resize import Size, bilinear_matrix, multiply_axis, resize_bilinear
from kernels_pallas.core.types import float32_or_wider
from vig_jax.layers.linear import precision


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


def adaptive_avg_pool(x: Float[Array, "B h w C"], size: int) -> Float[Array, "B s s C"]:
    """Averages maps over `size` x `size` bins, as PyTorch's `AdaptiveAvgPool2d`.

    Means are computed in float32 or wider; the result has `x`'s dtype.
    """
    pooled = x.astype(float32_or_wider(x.dtype))
    for axis in (1, 2):
        pooled = multiply_axis(pooling_matrix(x.shape[axis], size), pooled, axis)
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
    # Two steps: JAX splits or merges one axis at a time if an array is split explicitly.
    rows = products.reshape(B, h, w, 3, 3 * features).reshape(B, h, w * 3, 3 * features)
    rows = multiply_axis(_shifted(w, W), rows, 2)  # [B, h, W, (ky, feature)]
    rows = rows.reshape(B, h, W, 3, features).swapaxes(2, 3).reshape(B, h * 3, W, features)
    return multiply_axis(_shifted(h, H), rows, 1)


def _shifted(source: int, target: int) -> np.ndarray:
    """Returns the `[target, source * 3]` matrix that resizes, shifts and adds the taps of an axis.

    Tap k of position r reads row r + k - 1 of the resized axis. Rows outside are zero: the padding.
    """
    padded = np.pad(bilinear_matrix(source, target), ((1, 1), (0, 0)))
    return np.stack([padded[k : k + target] for k in range(3)], axis=-1).reshape(target, -1)
