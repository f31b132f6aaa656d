"""The local branch: a depthwise 3x3 convolution."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas import depthwise_conv
from kernels_pallas.core.types import float32_or_wider
from vig_jax.layers.linear import Dtype, xavier_mixer
from vig_jax.layers.packing import Packing
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
    def __call__(
        self, x: Float[Array, "B h w D"], packing: Packing | None = None
    ) -> Float[Array, "B h w D"]:
        """Returns the convolved maps; with `packing`, of the images in rows [R, T, 1, D]."""
        kernel = self.param("kernel", xavier_mixer, (3, 3, 1, x.shape[-1]), self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if packing is not None:
            return _convolve_packed(x[:, :, 0], kernel, packing, self.activation)[:, :, None]
        conv = functools.partial(depthwise_conv, activation=self.activation)
        border = functools.partial(conv, implementation="xla")
        split = functools.partial(convolve_rows, conv, border, kernel_size=3, stride=1)
        return shard_kernel(split, (MAPS, WHOLE), MAPS)(x, kernel)


def _convolve_packed(
    x: Float[Array, "R T D"],
    kernel: Float[Array, "3 3 1 D"],
    packing: Packing,
    activation: str | None,
) -> Float[Array, "R T D"]:
    """Adds nine products in float32 or wider, as `depthwise_conv` does."""
    wide = float32_or_wider(x.dtype)
    products = [
        (packing.neighbours(x, i - 1, j - 1) if (i, j) != (1, 1) else x).astype(wide)
        * kernel[i, j, 0].astype(wide)
        for i in range(3)
        for j in range(3)
    ]
    out = functools.reduce(jnp.add, products)
    return (jax.nn.silu(out) if activation == "silu" else out).astype(x.dtype)
