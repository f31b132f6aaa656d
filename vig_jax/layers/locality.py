"""The local branch: a depthwise 3x3 convolution."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.layers.linear import Dtype, precision, xavier_mixer


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution, zero padding 1, no bias: `[B, h, w, D] -> [B, h, w, D]`."""

    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        kernel = self.param("kernel", xavier_mixer, (3, 3, 1, x.shape[-1]), self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        return jax.lax.platform_dependent(x, kernel, cpu=_shifted_sum, default=_grouped_conv)


def _grouped_conv(x: Array, kernel: Array) -> Array:
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1, 1),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision=precision(x.dtype),
    )


def _shifted_sum(x: Array, kernel: Array) -> Array:
    """Nine shifted products; XLA's CPU backend has no fast grouped convolution."""
    h, w = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifts = [(i, j) for i in range(3) for j in range(3)]
    products = [padded[:, i : i + h, j : j + w] * kernel[i, j, 0] for i, j in shifts]
    return functools.reduce(jnp.add, products)
