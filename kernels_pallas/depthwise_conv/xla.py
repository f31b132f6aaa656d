"""Depthwise 3x3 convolution in plain XLA: right for every type, and the default outside of CUDA."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.choice import only_portable
from ..core.device import Device
from .spec import DepthwiseConvSpec

PLATFORMS = None

# So few rows are a sum that XLA fuses on every platform, with what makes and takes them.
_FEW_ROWS = 4


def supports(spec: DepthwiseConvSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: DepthwiseConvSpec, x: Float[Array, "B h w D"], kernel: Float[Array, "3 3 1 D"]
) -> Float[Array, "B h w D"]:
    """Computes `kernels_pallas.depthwise_conv`."""
    if spec.height <= _FEW_ROWS:
        return shifted_sum(spec, x, kernel)
    if only_portable():
        return grouped_conv(spec, x, kernel)
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=functools.partial(shifted_sum, spec),
        default=functools.partial(grouped_conv, spec),
    )


def grouped_conv(spec: DepthwiseConvSpec, x: Array, kernel: Array) -> Array:
    """Computes a grouped convolution: sums in float32, rounded before the activation.

    JAX has no gradient of a convolution whose result is wider than its arguments.
    """
    narrow = spec.dtype.itemsize < 4
    out = jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=spec.channels,
        precision=None if narrow else jax.lax.Precision.HIGHEST,
    )
    return _activated(spec, out.astype(spec.wide_dtype))


def shifted_sum(spec: DepthwiseConvSpec, x: Array, kernel: Array) -> Array:
    """Adds nine shifted products: XLA's CPU backend has no fast grouped convolution."""
    padded = jnp.pad(x.astype(spec.wide_dtype), ((0, 0), (1, 1), (1, 1), (0, 0)))
    weights = kernel.astype(spec.wide_dtype)
    products = [
        padded[:, i : i + spec.height, j : j + spec.width] * weights[i, j, 0]
        for i in range(3)
        for j in range(3)
    ]
    return _activated(spec, functools.reduce(jnp.add, products))


def _activated(spec: DepthwiseConvSpec, out: Array) -> Array:
    if spec.activation == "silu":
        out = jax.nn.silu(out)
    return out.astype(spec.dtype)
