"""The classification head: mean over tokens, then a linear map. The same map for every pixel."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.core.types import float32_or_wider
from vig_jax.layers.linear import Dtype, Initializer, dense, normal_002


def mean_pool(x: Float[Array, "B h w D"]) -> Float[Array, "B D"]:
    """Returns the mean over tokens, accumulated and returned in float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=float32_or_wider(x.dtype))


def classification_head(num_classes: int, param_dtype: Dtype) -> nn.Dense:
    """Returns the linear map from pooled features [B, D] to logits [B, num_classes].

    It is small, so it computes in float32 or wider whatever the dtype of the model.
    """
    return wide_dense(num_classes, normal_002, param_dtype)


def pixel_classifier(num_classes: int, param_dtype: Dtype) -> nn.Dense:
    """Returns the linear map from maps [B, h, w, D] to logits [B, h, w, num_classes].

    It computes in float32 or wider, as `classification_head` does. Its initial weights have a
    standard deviation of 0.01, as `conv_seg` has in mmsegmentation.
    """
    return wide_dense(num_classes, nn.initializers.normal(0.01), param_dtype)


def wide_dense(features: int, kernel_init: Initializer, param_dtype: Dtype) -> nn.Dense:
    """Returns a linear map, `[..., D] -> [..., features]`, that computes in float32 or wider."""
    return dense(features, kernel_init, None, param_dtype, promote_dtype=_widen)


def _widen(*arrays: Any, dtype: Dtype, **_: Any) -> list[Any]:
    """Returns the arrays in float64 if one of them is, else in float32."""
    del dtype
    wide = max((float32_or_wider(x.dtype) for x in arrays if x is not None), key=_bytes)
    return [None if x is None else jnp.asarray(x, wide) for x in arrays]


def _bytes(dtype: np.dtype) -> int:
    return dtype.itemsize
