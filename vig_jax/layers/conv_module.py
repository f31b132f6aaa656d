"""Convolution, batch normalisation, ReLU: the unit of segmentation heads."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.core.resize import Size
from vig_jax.layers.batch_norm import BatchNorm
from vig_jax.layers.linear import Dtype, precision
from vig_jax.layers.resize import resize_conv

# Kaiming normal by fan-out, not truncated, as mmcv initialises its ConvModule.
kaiming_normal = jax.nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ConvModule(nn.Module):
    """Convolution without bias, batch normalisation and ReLU. Source: mmcv's `ConvModule`.

    Attributes:
        features: output channels.
        kernel_size: 1, or 3 with zero padding of 1.
        dtype: dtype of the convolution; None promotes maps and kernel. Statistics are float32.
        param_dtype: dtype of the parameters.
    """

    features: int
    kernel_size: int
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.conv = ConvKernel(self.features, self.kernel_size, self.param_dtype)
        self.bn = BatchNorm("relu", param_dtype=self.param_dtype)

    def __call__(self, x: Float[Array, "B h w C"], train: bool) -> Float[Array, "B h w D"]:
        """Applies the module to one map; `train` is that of `BatchNorm`."""
        return self.of_resized([x], x.shape[1:3], train)

    def of_resized(
        self, maps: Sequence[Float[Array, "B _ _ _"]], size: Size, train: bool
    ) -> Float[Array, "B H W D"]:
        """Applies the module to the concatenation of maps that are resized to `size` first."""
        kernel = self.conv(sum(x.shape[-1] for x in maps))
        kernel, *maps = nn.dtypes.promote_dtype(kernel, *maps, dtype=self.dtype)
        if self.kernel_size == 1:
            (x,) = maps
            out = jnp.dot(x, kernel[0, 0], precision=precision(x.dtype))
        else:
            out = resize_conv(maps, kernel, size)
        return self.bn(out, train)


class ConvKernel(nn.Module):
    """The kernel of a square convolution."""

    features: int
    kernel_size: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, channels: int) -> Float[jax.Array | np.ndarray, "k k I O"]:
        shape = (self.kernel_size, self.kernel_size, channels, self.features)
        return self.param("kernel", kaiming_normal, shape, self.param_dtype)
