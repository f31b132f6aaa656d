"""Overlapping convolutions between images and tokens and between stages."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.layers.linear import Dtype, conv
from vig_jax.layers.norm import layer_norm


class ConvStem(nn.Module):
    """Images to a map of tokens: conv, norm, activation, conv, norm.

    The first convolution (kernel `patch_size // 2 + 1`, stride `patch_size // 2`) makes half of
    the channels, the second (kernel 3, stride 2) all of them. Source: hustvl/ViG `V2PatchEmbed`
    (`patch_size=16`, SiLU) and ViG-H's patch embedding v2 (`patch_size=4`, GELU).
    """

    features: int
    patch_size: int
    activation: Callable[[jax.Array], jax.Array]
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        half, stride = self.features // 2, self.patch_size // 2
        dtypes = self.dtype, self.param_dtype
        self.conv1 = conv(half, 3, stride + 1, stride, *dtypes)
        self.norm1 = layer_norm(*dtypes)
        self.conv2 = conv(self.features, half, 3, 2, *dtypes)
        self.norm2 = layer_norm(*dtypes)

    def __call__(self, images: Float[Array, "B H W 3"]) -> Float[Array, "B h w D"]:
        smallest = self.patch_size // 2 - 1
        if min(images.shape[1:3]) < smallest:
            raise ValueError(
                f"images are {images.shape[1]}x{images.shape[2]} pixels; the stem of a model with "
                f"patch_size={self.patch_size} needs at least {smallest} on either side"
            )
        x = self.activation(self.norm1(self.conv1(images)))
        return self.norm2(self.conv2(x))


class Downsample(nn.Module):
    """Half the rows and columns, rounded up, and another width: conv 3x3 of stride 2, norm."""

    features: int
    in_features: int
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = self.dtype, self.param_dtype
        self.conv = conv(self.features, self.in_features, 3, 2, *dtypes)
        self.norm = layer_norm(*dtypes)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 D"]:
        return self.norm(self.conv(x))
