"""Dense layers and convolutions with this project's precision and initialisers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Dtype = Any
Initializer = jax.nn.initializers.Initializer

# Upstream's Xavier-uniform with gain 2**-2.5 for every projection of the token mixer.
xavier_mixer = jax.nn.initializers.variance_scaling(2.0**-5, "fan_avg", "uniform")
normal_002 = jax.nn.initializers.normal(0.02)
# PyTorch's default for convolutions: uniform in +-1/sqrt(fan_in).
torch_conv = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform_bias(fan_in: int) -> Callable[..., jax.Array]:
    """Returns PyTorch's default bias initialiser: uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def precision(dtype: Dtype) -> jax.lax.Precision | None:
    """Returns the precision of products: full float32 (never TF32), or None for narrower dtypes."""
    narrow = dtype is not None and jnp.finfo(dtype).bits < 32
    return None if narrow else jax.lax.Precision.HIGHEST


def dense(
    features: int, kernel_init: Initializer, dtype: Dtype, param_dtype: Dtype, **options: Any
) -> nn.Dense:
    """Returns a linear map with bias over the last axis, `[..., D] -> [..., features]`."""
    return nn.Dense(
        features,
        kernel_init=kernel_init,
        dtype=dtype,
        param_dtype=param_dtype,
        precision=precision(dtype),
        **options,
    )


class LinearWeights(nn.Module):
    """The parameters of a linear map, for layers that merge the product or fuse it."""

    features: int
    kernel_init: Initializer
    param_dtype: Dtype = jnp.float32
    use_bias: bool = False

    @nn.compact
    def __call__(self, in_features: int) -> tuple[jax.Array | np.ndarray, ...]:
        """Returns the kernel [in_features, features], and with `use_bias` the bias [features]."""
        shape = (in_features, self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        if not self.use_bias:
            return (kernel,)
        zeros = nn.initializers.zeros
        return kernel, self.param("bias", zeros, (self.features,), self.param_dtype)
