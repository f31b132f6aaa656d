"""ViG's token mixer: bidirectional GLA blended with a local branch."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas import bidirectional_gla
from vig_jax.layers.linear import Dtype, Initializer, dense, xavier_mixer
from vig_jax.layers.locality import DepthwiseConv
from vig_jax.layers.norm import RMSNorm
from vig_jax.sharding.kernels import over_batch

GATE_RANK = 16
GATE_NORMALIZER = 16.0  # log-decay = logsigmoid(logit) / 16


class GatedLinearAttention(nn.Module):
    """Bidirectional gated linear attention with 2D gating locality injection.

    A depthwise 3x3 convolution gives the local map `s`. Queries, keys (D/2 channels each), values
    (D) and the decays of the two directions are projected from `s`; the normalised result of the
    scan and the normalised `s` are blended by a sigmoid gate. Source: ViG (AAAI 2025), section 3;
    hustvl/ViG `classification/models/vig.py`.

    Attributes:
        num_heads: heads; each has D/2/num_heads key and D/num_heads value channels.
        kernel_init: of the linear maps; the depthwise convolution has its own.
        use_act_in_conv: SiLU after the depthwise convolution.
        use_out_act: SiLU before the output projection.
        merge_scale: factor on the sum of the two directions. Upstream trains with 1/2; see
            `vig_jax.models.vig.ViG`.
        gla_implementation: see `kernels_pallas.bidirectional_gla`.
    """

    features: int
    num_heads: int
    kernel_init: Initializer = xavier_mixer
    use_act_in_conv: bool = False
    use_out_act: bool = False
    merge_scale: float = 0.5
    gla_implementation: str | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = self.dtype, self.param_dtype
        self.dwconv = DepthwiseConv(*dtypes)
        self.qkv_proj = dense(2 * self.features, self.kernel_init, *dtypes)
        self.gk_proj_down = dense(GATE_RANK, self.kernel_init, *dtypes)
        self.gk_proj_up = dense(self.features, self.kernel_init, *dtypes, use_bias=True)
        self.g_proj = dense(self.features, self.kernel_init, *dtypes, use_bias=True)
        self.g_norm = RMSNorm(param_dtype=self.param_dtype)
        self.l_norm = RMSNorm(param_dtype=self.param_dtype)
        self.o_proj = dense(self.features, self.kernel_init, *dtypes)

    def __call__(self, x: Float[Array, "B h w D"]) -> Float[Array, "B h w D"]:
        s = self.dwconv(x)
        s = jax.nn.silu(s) if self.use_act_in_conv else s

        half = self.features // 2
        q, k, v = jnp.split(self.qkv_proj(s), (half, 2 * half), axis=-1)
        logits = self.gk_proj_up(self.gk_proj_down(s))
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        decay_fwd, decay_bwd = jnp.split(jax.nn.log_sigmoid(logits) / GATE_NORMALIZER, 2, axis=-1)
        q, k, v, decay_fwd, decay_bwd = map(self._to_heads, (q, k, v, decay_fwd, decay_bwd))
        scan = functools.partial(
            bidirectional_gla,
            scale=self.merge_scale * q.shape[-1] ** -0.5,
            implementation=self.gla_implementation,
        )
        o = over_batch(scan)(q, k, v, decay_fwd, decay_bwd)

        gate = self._to_heads(jax.nn.sigmoid(self.g_proj(s)))
        z = gate * self.g_norm(o) + (1 - gate) * self.l_norm(self._to_heads(s))
        z = jax.nn.silu(z) if self.use_out_act else z
        return self.o_proj(z.reshape(x.shape))

    def _to_heads(self, x: Float[Array, "B h w E"]) -> Float[Array, "B T H E/H"]:
        return x.reshape(x.shape[0], -1, self.num_heads, x.shape[-1] // self.num_heads)
