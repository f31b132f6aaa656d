"""The classification head: mean over tokens, then a linear map."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.layers.linear import Dtype, dense, normal_002


def mean_pool(x: Float[Array, "B h w D"]) -> Float[Array, "B D"]:
    """Returns the mean over tokens, accumulated and returned in float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))


def classification_head(num_classes: int, param_dtype: Dtype) -> nn.Dense:
    """Returns the linear map from pooled features [B, D] to logits [B, num_classes].

    It is small, so it computes in float32 whatever the dtype of the model.
    """
    return dense(num_classes, normal_002, None, param_dtype)
