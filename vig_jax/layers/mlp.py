"""The channel mixer."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas import swiglu_mlp
from vig_jax.layers.linear import Dtype, LinearWeights, normal_002
from vig_jax.sharding.kernels import over_batch


def swiglu_hidden(features: int, multiple_of: int) -> int:
    """Inner width: 8/3 of the width, where a plain MLP would have 4, rounded up to a multiple.

    Three matrices of that width hold as many weights as two of four times the width.
    """
    return multiple_of * -(-int(8 * features / 3) // multiple_of)


class SwiGLU(nn.Module):
    """`down_proj(SiLU(gate) * y)` with `[gate, y] = gate_proj(x)`; no biases.

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
        return over_batch(swiglu_mlp, replicated=2)(*arrays)
