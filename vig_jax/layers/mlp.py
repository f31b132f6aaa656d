"""The channel mixer of a block."""

import math

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas import swiglu_mlp
from vig_jax.layers.linear import Dtype, LinearWeights, normal_002
from vig_jax.sharding.kernels import MAPS, WHOLE, shard_kernel


def swiglu_hidden(features: int, multiple_of: int) -> int:
    """Returns the inner width: 8/3 of `features`, rounded up to a multiple of `multiple_of`.

    Three matrices of this width have the parameter count of the two in a plain MLP, whose inner
    width is 4 * `features`.
    """
    return multiple_of * math.ceil(int(8 * features / 3) / multiple_of)


class SwiGLU(nn.Module):
    """Gated MLP: `down_proj(SiLU(gate) * up)` with `[gate, up] = gate_proj(x)`; no biases.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """

    features: int
    hidden: int
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.gate_proj = LinearWeights(2 * self.hidden, normal_002, self.param_dtype)
        self.down_proj = LinearWeights(self.features, normal_002, self.param_dtype)

    def __call__(self, x: Float[Array, "... D"]) -> Float[Array, "... D"]:
        (kernel,), (down_kernel,) = self.gate_proj(x.shape[-1]), self.down_proj(self.hidden)
        arrays = nn.dtypes.promote_dtype(x, kernel, down_kernel, dtype=self.dtype)
        return shard_kernel(swiglu_mlp, (MAPS, WHOLE, WHOLE), MAPS)(*arrays)
