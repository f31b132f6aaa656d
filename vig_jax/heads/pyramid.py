"""Feature2Pyramid: maps of four strides from maps of one."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.layers.batch_norm import BatchNorm
from vig_jax.layers.linear import Dtype, precision, uniform_bias


class Deconv(nn.Module):
    """Transposed 2x2 convolution of stride 2 with bias; doubles rows and columns.

    Its windows do not overlap, so it is one product to 4 F channels, moved into 2x2 positions. The
    kernel is [D, 2, 2, F]: input channel, row, column, output channel; PyTorch's [in, out, kh, kw]
    transposed by (0, 2, 3, 1).

    Attributes:
        dtype: dtype of the product; None promotes map and kernel.
        param_dtype: dtype of the parameters.
        features: output channels F; None: those of the input.
        kaiming: whether the kernel is initialised from a normal distribution by fan-out and the
            bias with zeros, as in mmdet's mask head. False: as PyTorch does, both uniform in
            +-1/sqrt(4 F).
    """

    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32
    features: int | None = None
    kaiming: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h2 w2 F"]:
        B, h, w, D = x.shape
        F = self.features or D
        kernel_init = bias_init = uniform_bias(4 * F)
        if self.kaiming:
            kernel_init = nn.initializers.normal((2 / (4 * D)) ** 0.5)
            bias_init = nn.initializers.zeros
        kernel: jax.Array = self.param("kernel", kernel_init, (D, 2, 2, F), self.param_dtype)
        bias: jax.Array = self.param("bias", bias_init, (F,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        out = jnp.dot(x, kernel.reshape(D, 4 * F), precision=precision(x.dtype))
        out = (out.reshape(B, h, w, 2, 2, F) + bias).transpose(0, 1, 3, 2, 4, 5)
        # Two steps: JAX merges one pair of axes at a time if an array is split explicitly.
        return out.reshape(B, 2 * h, w, 2, F).reshape(B, 2 * h, 2 * w, F)


class Feature2Pyramid(nn.Module):
    """The neck of plain models: four maps of stride 16 become maps of strides 4, 8, 16 and 32.

    Source: BEiT, microsoft/unilm `beit/semantic_segmentation/backbone/beit.py`; mmsegmentation
    `models/necks/featurepyramid.py`, whose names the parameters have.

    Attributes:
        dtype: dtype of the products; None promotes maps and kernels. Statistics are float32.
        param_dtype: dtype of the parameters.
    """

    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = self.dtype, self.param_dtype
        self.upsample_4x_0 = Deconv(*dtypes)
        self.upsample_4x_1 = BatchNorm("gelu", param_dtype=self.param_dtype)
        self.upsample_4x_3 = Deconv(*dtypes)
        self.upsample_2x_0 = Deconv(*dtypes)

    def __call__(
        self, maps: Sequence[Float[Array, "B h w D"]], train: bool = False
    ) -> tuple[Float[Array, "B _ _ D"], ...]:
        """Returns the pyramid, fine to coarse; an odd last row or column is dropped in the last.

        Args:
            maps: four maps [B, h, w, D] of one size, at least 2 x 2.
            train: see `BatchNorm`.
        """
        fine, middle, coarse, coarsest = maps
        fine = self.upsample_4x_3(self.upsample_4x_1(self.upsample_4x_0(fine), train))
        pooled = nn.max_pool(coarsest, window_shape=(2, 2), strides=(2, 2))
        return fine, self.upsample_2x_0(middle), coarse, pooled
