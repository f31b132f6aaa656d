"""The local branch: a depthwise 3x3 convolution."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas import depthwise_conv
from vig_jax.layers.linear import Dtype, xavier_mixer
from vig_jax.sharding.kernels import MAPS, WHOLE, shard_kernel
from vig_jax.sharding.sequence import convolve_rows


class DepthwiseConv(nn.Module):
    """Depthwise 3x3 convolution, zero padding 1, no bias: `[B, h, w, D] -> [B, h, w, D]`.

    Attributes:
        activation: None or "silu", applied to the result.
    """

    activation: str | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        kernel = self.param("kernel", xavier_mixer, (3, 3, 1, x.shape[-1]), self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        conv = functools.partial(depthwise_conv, activation=self.activation)
        border = functools.partial(conv, implementation="xla")
        split = functools.partial(convolve_rows, conv, border, kernel_size=3, stride=1)
        return shard_kernel(split, (MAPS, WHOLE), MAPS)(x, kernel)
