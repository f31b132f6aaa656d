"""The classification head: mean over tokens, then a linear map. The same map for every pixel."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.core.types import float32_or_wider
from vig_jax.layers.linear import Dtype, Initializer, dense, normal_002, precision


def mean_pool(x: Float[Array, "B h w D"]) -> Float[Array, "B D"]:
    """Returns the mean over tokens, accumulated and returned in float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=float32_or_wider(x.dtype))


def classification_head(num_classes: int, param_dtype: Dtype) -> nn.Dense:
    """Returns the linear map from pooled features [B, D] to logits [B, num_classes].

    It is small, so it computes in float32 or wider whatever the dtype of the model.
    """
    return wide_dense(num_classes, normal_002, param_dtype)


def wide_dense(features: int, kernel_init: Initializer, param_dtype: Dtype) -> nn.Dense:
    """Returns a linear map, `[..., D] -> [..., features]`, that computes in float32 or wider."""
    return dense(features, kernel_init, None, param_dtype, promote_dtype=_widen)


class PixelClassifier(nn.Module):
    """The linear map from maps [B, h, w, D] to logits [B, h, w, num_classes].

    The products have operands of the maps' dtype; sums, bias and logits are float32 or wider. The
    initial weights have a standard deviation of 0.01, as `conv_seg` has in mmsegmentation.
    """

    num_classes: int
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w K"]:
        shape = (x.shape[-1], self.num_classes)
        kernel = self.param("kernel", nn.initializers.normal(0.01), shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape[1:], self.param_dtype)
        products = _wide_product(x, kernel.astype(x.dtype))
        return products + bias.astype(products.dtype)


@jax.custom_vjp
def _wide_product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns `x @ kernel` in float32 or wider, from operands of one dtype."""
    wide = float32_or_wider(x.dtype)
    return jnp.dot(x, kernel, precision=precision(x.dtype), preferred_element_type=wide)


def _wide_product_forward(
    x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _wide_product(x, kernel), (x, kernel)


def _wide_product_backward(
    operands: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # A product of float32 and bfloat16 would be one of float32, which is several times slower.
    narrow = gradient.astype(operands[0].dtype)
    exact = precision(narrow.dtype)
    _, transposed = jax.vjp(lambda x, kernel: jnp.dot(x, kernel, precision=exact), *operands)
    return transposed(narrow)


_wide_product.defvjp(_wide_product_forward, _wide_product_backward, optimize_remat=True)


def _widen(*arrays: Any, dtype: Dtype, **_: Any) -> list[Any]:
    """Returns the arrays in float64 if one of them is, else in float32."""
    del dtype
    wide = max((float32_or_wider(x.dtype) for x in arrays if x is not None), key=_bytes)
    return [None if x is None else jnp.asarray(x, wide) for x in arrays]


def _bytes(dtype: np.dtype) -> int:
    return dtype.itemsize
