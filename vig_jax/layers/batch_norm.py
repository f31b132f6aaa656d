"""Batch normalisation with PyTorch's statistics."""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.types import float32_or_wider
from vig_jax.errors import ConfigError
from vig_jax.layers.linear import Dtype

_ACTIVATIONS: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda x: x,
    "relu": nn.relu,
    "gelu": functools.partial(nn.gelu, approximate=False),
}


class BatchNorm(nn.Module):
    """Normalisation of each channel over the batch and all positions, then an activation.

    In training it uses the statistics of the batch and moves the running ones in the collection
    `batch_stats`, which must be mutable: `mean`, and `var`, the unbiased variance. The biased
    variance normalises. In evaluation it uses the running ones. Statistics are float32 or wider,
    and the result has the input's dtype. Under `jax.jit` the statistics of a batch that is split
    over devices are those of the whole batch. Source: PyTorch's `BatchNorm2d` and `SyncBatchNorm`.

    Attributes:
        activation: None, "relu" or "gelu" (the exact one), applied before the result is rounded.
        epsilon: added to the variance.
        momentum: weight of a batch in the running statistics.
        param_dtype: dtype of scale and bias; running statistics are float32 or wider.
    """

    activation: str | None = None
    epsilon: float = 1e-5
    momentum: float = 0.1
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B h w D"], train: bool) -> Float[Array, "B h w D"]:
        """Normalises `x` and applies the activation.

        Raises:
            ConfigError: in training, there is one value per channel, which has no variance.
        """
        shape, wide = (x.shape[-1],), float32_or_wider(x.dtype)
        scale = self.param("scale", nn.initializers.ones, shape, self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, shape, self.param_dtype)
        stored = float32_or_wider(self.param_dtype)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape, stored)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, stored)
        values = x.astype(wide)
        if train:
            count = x.size // x.shape[-1]
            if count < 2:
                raise ConfigError(
                    f"training with {x.shape[0]} image: a map of {x.shape[1]}x{x.shape[2]} leaves "
                    "batch normalisation one value per channel, which has no variance; use a "
                    "batch of at least 2 images"
                )
            mean = jnp.mean(values, (0, 1, 2))
            var = jnp.mean(jnp.square(values - mean), (0, 1, 2))
            if not self.is_initializing():
                unbiased = var * (count / (count - 1))
                for running, batch in ((running_mean, mean), (running_var, unbiased)):
                    batch = batch.astype(running.value.dtype)
                    running.value = running.value + self.momentum * (batch - running.value)
        else:
            mean, var = running_mean.value.astype(wide), running_var.value.astype(wide)
        factor = scale.astype(wide) * jax.lax.rsqrt(var + self.epsilon)
        normed = (values - mean) * factor + bias.astype(wide)
        return _ACTIVATIONS[self.activation](normed).astype(x.dtype)
