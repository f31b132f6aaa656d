"""Overlapping convolutions: from images to tokens, and from stage to stage."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas import im2col
from vig_jax.errors import ConfigError
from vig_jax.layers.linear import Dtype, precision, torch_conv, uniform_bias
from vig_jax.layers.norm import layer_norm
from vig_jax.layers.packing import Packing
from vig_jax.sharding.kernels import MAPS, WHOLE, shard_kernel
from vig_jax.sharding.sequence import convolve_rows


class PatchConv(nn.Module):
    """A biased convolution with padding 1 and kernel size `stride + 1`, as im2col and a product.

    GPU convolutions of three channels spend their time on padding the channels. im2col avoids
    that. It also appends a one to each patch, so that the product includes the bias. The parameters
    are those of `nn.Conv`.
    """

    features: int
    stride: int
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "B H W C"] | Float[Array, "R T P P C"],
        packing: Packing | None = None,
    ) -> Float[Array, "B h w D"]:
        """Returns a map; with `packing`, the two rows and columns of each patch, [R, T, 4, D]."""
        size, channels = self.stride + 1, images.shape[-1]
        shape = (size, size, channels, self.features)
        kernel = self.param("kernel", torch_conv, shape, self.param_dtype)
        bias_init = uniform_bias(channels * size**2)
        bias = self.param("bias", bias_init, (self.features,), self.param_dtype)
        images, kernel, bias = nn.dtypes.promote_dtype(images, kernel, bias, dtype=self.dtype)
        patches = functools.partial(im2col, kernel_size=size, stride=self.stride, ones=True)
        split = functools.partial(
            convolve_rows, patches, patches, kernel_size=size, stride=self.stride
        )
        if packing is None:
            columns = shard_kernel(split, (MAPS,), MAPS)(images)
        else:
            columns = _packed_windows(images, packing, self.stride)
        matrix = jnp.concatenate([kernel.reshape(-1, self.features), bias[None]])
        matrix = jnp.pad(matrix, ((0, columns.shape[-1] - len(matrix)), (0, 0)))
        dot = functools.partial(jnp.dot, precision=precision(self.dtype))
        product: jax.Array = shard_kernel(dot, (MAPS, WHOLE), MAPS)(columns, matrix)
        return product


class HalvingConv(nn.Module):
    """A biased 3x3 convolution of stride 2 and padding 1. The parameters are those of `nn.Conv`."""

    features: int
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w C"], packing: Packing | None = None
    ) -> Float[Array, "B h2 w2 D"]:
        """Returns a map; with `packing`, x has two rows and columns of each patch, [R, T, 4, C]."""
        channels = x.shape[-1]
        kernel = self.param("kernel", torch_conv, (3, 3, channels, self.features), self.param_dtype)
        bias = self.param("bias", uniform_bias(channels * 9), (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if packing is not None:
            windows = _with_borders(x.reshape(*x.shape[:2], 2, 2, channels), packing)
            windows = windows.reshape(*x.shape[:2], 1, 9 * channels)
            product = jnp.dot(
                windows, kernel.reshape(9 * channels, -1), precision=precision(self.dtype)
            )
            return product + bias
        conv = functools.partial(
            jax.lax.conv_general_dilated,
            window_strides=(2, 2),
            padding=((1, 1), (1, 1)),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            precision=precision(self.dtype),
        )
        split = functools.partial(convolve_rows, conv, conv, kernel_size=3, stride=2)
        return shard_kernel(split, (MAPS, WHOLE), MAPS)(x, kernel) + bias


def _with_borders(x: Float[Array, "R T P P C"], packing: Packing) -> Float[Array, "R T Q Q C"]:
    """Adds the last row and column of the patches above and to the left; zeros at the border."""
    rows, tokens = x.shape[:2]

    def neighbours(part: jax.Array, down: int, right: int) -> jax.Array:
        flat = part.reshape(rows, tokens, -1)
        return packing.neighbours(flat, down, right).reshape(part.shape)

    above = neighbours(x[:, :, -1:], -1, 0)
    corner = neighbours(x[:, :, -1:, -1:], -1, -1)
    left = neighbours(x[:, :, :, -1:], 0, -1)
    top = jnp.concatenate([corner, above], axis=3)
    return jnp.concatenate([top, jnp.concatenate([left, x], axis=3)], axis=2)


def _packed_windows(
    patches: Float[Array, "R T P P C"], packing: Packing, stride: int
) -> Float[Array, "R T 4 K"]:
    """Returns the pixels under the kernel at the four positions of each patch, and a one."""
    x = _with_borders(patches, packing)
    size = stride + 1
    windows = jnp.stack(
        [x[:, :, i : i + size, j : j + size] for i in (0, stride) for j in (0, stride)], axis=2
    )
    windows = windows.reshape(*windows.shape[:3], -1)
    return jnp.concatenate([windows, jnp.ones_like(windows[..., :1])], axis=-1)


def smallest_image(patch_size: int) -> int:
    """Returns the smallest image side in pixels that a `ConvStem` accepts."""
    return max(1, patch_size // 2 - 1)


class ConvStem(nn.Module):
    """Patch embedding, images to a map of tokens: conv, norm, activation, conv, norm.

    The first convolution (kernel `patch_size // 2 + 1`, stride `patch_size // 2`) has half of the
    channels, the second (kernel 3, stride 2) all of them. Source: hustvl/ViG `V2PatchEmbed`
    (`patch_size=16`, SiLU) and ViG-H's patch embedding v2 (`patch_size=4`, GELU).
    """

    features: int
    patch_size: int
    activation: str
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        half = self.features // 2
        dtypes = self.dtype, self.param_dtype
        self.conv1 = PatchConv(half, self.patch_size // 2, *dtypes)
        self.norm1 = layer_norm(self.param_dtype, self.activation)
        self.conv2 = HalvingConv(self.features, *dtypes)
        self.norm2 = layer_norm(self.param_dtype)

    def __call__(
        self,
        images: Float[Array, "B H W in_chans"] | Float[Array, "R T P P in_chans"],
        packing: Packing | None = None,
    ) -> Float[Array, "B h w D"]:
        """Returns a map; with `packing`, the tokens [R, T, 1, D] of patches of images."""
        if packing is not None:
            x = self.norm1(self.conv1(images, packing))
            return self.norm2(self.conv2(x, packing))
        smallest = smallest_image(self.patch_size)
        if min(images.shape[1:3]) < smallest:
            raise ConfigError(
                f"images are {images.shape[1]}x{images.shape[2]} pixels; the stem of a model with "
                f"patch_size={self.patch_size} needs at least {smallest} on each side"
            )
        x = self.norm1(self.conv1(images))
        return self.norm2(self.conv2(x))


class Downsample(nn.Module):
    """Halves rows and columns, rounding up, and changes the width: 3x3 conv of stride 2, norm."""

    features: int
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = self.dtype, self.param_dtype
        self.conv = HalvingConv(self.features, *dtypes)
        self.norm = layer_norm(self.param_dtype)

    def __call__(self, x: Float[Array, "B h w C"]) -> Float[Array, "B h2 w2 D"]:
        return self.norm(self.conv(x))
