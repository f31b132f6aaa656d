"""Stochastic depth."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.types import Dim


class DropPath(nn.Module):
    """Draws which images drop a residual branch, each with probability `rate`.

    A kept branch is divided by `1 - rate`, as in timm's `DropPath`. The draw uses the "dropout" RNG
    stream. Source: Huang et al., "Deep Networks with Stochastic Depth", 2016.
    """

    rate: float

    @nn.compact
    def __call__(self, batch: Dim, train: bool) -> Float[Array, " B"] | None:
        """Returns the factor on each image's branch, 0 or 1 / (1 - rate); None if all are 1."""
        if not train or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        kept = jax.random.bernoulli(self.make_rng("dropout"), keep, (batch,))
        return kept.astype(jnp.float32) / keep
