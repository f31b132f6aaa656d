"""Convolutions of necks and of detection heads."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.layers.linear import Dtype, Initializer, precision
from vig_jax.layers.norm import Norm


class Conv(nn.Module):
    """A convolution of stride 1 that keeps the size; of one position, it is a linear map.

    Attributes:
        features: output channels.
        kernel_size: rows and columns of the kernel; odd.
        kernel_init: initialiser of the kernel; a bias begins with zeros.
        normalised: whether a layer norm over channels, with eps 1e-6, replaces the bias.
        dtype: dtype of the products; None promotes maps and kernel. Statistics are float32.
        param_dtype: dtype of the parameters.
    """

    features: int
    kernel_size: int
    kernel_init: Initializer
    normalised: bool = False
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        size = (self.kernel_size, self.kernel_size)
        shape = (*size, x.shape[-1], self.features)
        kernel: jax.Array = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        x, kernel = nn.dtypes.promote_dtype(x, kernel, dtype=self.dtype)
        if self.kernel_size == 1:
            x = jnp.dot(x, kernel[0, 0], precision=precision(x.dtype))
        else:
            dimensions = ("NHWC", "HWIO", "NHWC")
            x = jax.lax.conv_general_dilated(
                x, kernel, (1, 1), "SAME", dimension_numbers=dimensions,
                precision=precision(x.dtype),
            )  # fmt: skip
        if self.normalised:
            return Norm("layer", 1e-6, param_dtype=self.param_dtype, name="norm")(x)
        bias: jax.Array = self.param(
            "bias", nn.initializers.zeros, (self.features,), self.param_dtype
        )
        return x + bias.astype(x.dtype)


class ConvUnit(nn.Module):
    """A `Conv` under the name `conv`, as mmdet's heads and necks have it."""

    features: int
    kernel_size: int
    kernel_init: Initializer
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        options = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.conv = Conv(self.features, self.kernel_size, self.kernel_init, **options)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h w D"]:
        """Applies the convolution."""
        return self.conv(x)
