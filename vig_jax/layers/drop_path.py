"""Stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class DropPath(nn.Module):
    """Drops a residual branch per sample with probability `rate`, scaling the kept ones.

    As timm's `DropPath`: a kept branch is divided by `1 - rate`. Draws from the "dropout" stream.
    Source: Huang et al., "Deep Networks with Stochastic Depth", 2016.
    """

    rate: float

    @nn.compact
    def __call__(self, x: Float[Array, "B ..."], train: bool) -> Float[Array, "B ..."]:
        if not train or self.rate == 0.0:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, shape)
        return jnp.where(kept, x / keep, 0).astype(x.dtype)
