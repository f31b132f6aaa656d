"""Stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class DropPath(nn.Module):
    """Draws which samples keep a residual branch: each drops it with probability `rate`.

    As timm's `DropPath`: a kept branch is divided by `1 - rate`. Draws from the "dropout" stream.
    Source: Huang et al., "Deep Networks with Stochastic Depth", 2016.
    """

    rate: float

    @nn.compact
    def __call__(self, batch: int, train: bool) -> Float[Array, " B"] | None:
        """Factors on the branch, 0 or 1 / (1 - rate) per sample; None where all are 1."""
        if not train or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (batch,))
        return kept.astype(jnp.float32) / keep
