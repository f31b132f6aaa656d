"""SimplePyramid: a feature pyramid from one map of a plain backbone."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vig_jax.heads.pyramid import Deconv
from vig_jax.layers.conv import Conv
from vig_jax.layers.linear import Dtype, torch_conv
from vig_jax.layers.norm import Norm
from vig_jax.layers.padding import zero_outside


class SimplePyramid(nn.Module):
    """Maps of strides 4, 8, 16, 32 and 64 from one map of stride 16.

    The map is enlarged by transposed convolutions, left, or pooled, and each result is brought to
    one width by a 1x1 and a 3x3 convolution with layer norms. The fifth map has every second
    position of the fourth. Source: "Exploring Plain Vision Transformer Backbones for Object
    Detection" (ECCV 2022); detectron2 `modeling/backbone/vit.py`, whose names the parameters have.

    Attributes:
        channels: width of the results.
        dtype: dtype of the products; None promotes maps and kernels. Statistics are float32.
        param_dtype: dtype of the parameters.
    """

    channels: int = 256
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "B h w D"], sizes: Int[Array, "B 2"] | None = None
    ) -> tuple[Float[Array, "B _ _ C"], ...]:
        """Returns the pyramid, fine to coarse.

        Args:
            x: the map; `h` and `w` must be at least 2.
            sizes: see `vig_jax.heads.fpn.FPN`.
        """
        dim = x.shape[-1]

        def deconv(features: int, name: str) -> Deconv:
            return Deconv(self.dtype, self.param_dtype, features, name=name)

        def level(x: Array, stride: int, stage: str, first: int) -> Array:
            for i, kernel_size in enumerate((1, 3)):
                x = Conv(
                    self.channels, kernel_size, torch_conv, normalised=True, dtype=self.dtype,
                    param_dtype=self.param_dtype, name=f"{stage}_{first + i}",
                )(x)  # fmt: skip
                x = zero_outside(x, sizes, stride)
            return x

        norm = Norm("layer", 1e-6, "gelu", self.param_dtype, name="simfp_2_1")
        finest = deconv(dim // 4, "simfp_2_3")(norm(deconv(dim // 2, "simfp_2_0")(x)))
        finer = deconv(dim // 2, "simfp_3_0")(x)
        pooled = nn.max_pool(x, window_shape=(2, 2), strides=(2, 2))
        coarsest = level(pooled, 32, "simfp_5", 1)
        return (
            level(finest, 4, "simfp_2", 4),
            level(finer, 8, "simfp_3", 1),
            level(x, 16, "simfp_4", 0),
            coarsest,
            coarsest[:, ::2, ::2],
        )
