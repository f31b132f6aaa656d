"""FPN: a feature pyramid from the stages of a hierarchical backbone."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vig_jax.layers.conv import ConvUnit
from vig_jax.layers.linear import Dtype
from vig_jax.layers.padding import zero_outside

STRIDES = (4, 8, 16, 32, 64)  # pixels per position of each map of the pyramid
LEVELS = 4  # maps of the backbone
xavier = nn.initializers.xavier_uniform()


class FPN(nn.Module):
    """Five maps of one width from four maps of strides 4 to 32.

    A 1x1 convolution of each map, the coarser result added, a 3x3 convolution. The fifth map has
    every second position of the fourth. Source: "Feature Pyramid Networks for Object Detection"
    (CVPR 2017); mmdet `models/necks/fpn.py`, whose names the parameters have.

    Attributes:
        channels: width of the results.
        dtype: dtype of the products; None promotes maps and kernels.
        param_dtype: dtype of the parameters.
    """

    channels: int = 256
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        def convs(kernel_size: int) -> list[ConvUnit]:
            dtypes = self.dtype, self.param_dtype
            unit = [ConvUnit(self.channels, kernel_size, xavier, *dtypes) for _ in range(LEVELS)]
            return unit

        self.lateral_convs = convs(1)
        self.fpn_convs = convs(3)

    def __call__(
        self,
        maps: Sequence[Float[Array, "B _ _ _"]],
        sizes: Int[Array, "B 2"] | None = None,
    ) -> tuple[Float[Array, "B _ _ C"], ...]:
        """Returns the pyramid, fine to coarse.

        Args:
            maps: four maps, fine to coarse, each half the size of the one before, rounded up.
            sizes: height and width in pixels of the valid part of each image, in multiples of 32.
                The result is zero elsewhere, and in the valid part that of the part alone. None:
                nothing is padded.
        """
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, maps, strict=True)]
        for i in reversed(range(LEVELS - 1)):
            laterals[i] = laterals[i] + doubled(laterals[i + 1], laterals[i].shape[1:3])
        levels = []
        for conv, x, stride in zip(self.fpn_convs, laterals, STRIDES[:LEVELS], strict=True):
            levels.append(zero_outside(conv(zero_outside(x, sizes, stride)), sizes, stride))
        return *levels, levels[-1][:, ::2, ::2]


def doubled(x: Float[Array, "B h w C"], size: tuple[int, ...]) -> Float[Array, "B H W C"]:
    """Returns a map with every position repeated along rows and columns.

    Args:
        x: the map.
        size: rows and columns of the result: twice those of `x`, or one less.

    Raises:
        ValueError: `size` is another one.
    """
    for axis, length in zip((1, 2), size, strict=True):
        if x.shape[axis] != -(-length // 2):
            raise ValueError(
                f"a map of {x.shape[1:3]} cannot be added to one of {size}: it must have half the "
                "size, rounded up. Pad images to a multiple of the last stride"
            )
        x = jax.lax.slice_in_dim(jnp.repeat(x, 2, axis), 0, length, axis=axis)
    return x
