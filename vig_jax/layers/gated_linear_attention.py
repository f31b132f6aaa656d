"""ViG's token mixer: bidirectional GLA blended with a local branch."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas import vig_mixer
from kernels_pallas.core.types import float32_or_wider
from vig_jax.layers.linear import (
    Dtype,
    Initializer,
    LinearWeights,
    precision,
    xavier_mixer,
)
from vig_jax.layers.locality import DepthwiseConv
from vig_jax.layers.packing import Packing
from vig_jax.layers.padding import Padding
from vig_jax.sharding.kernels import MAPS, ROWS, WHOLE, shard_kernel
from vig_jax.sharding.sequence import exchange_states

GATE_RANK = 16
GATE_NORMALIZER = 16.0  # log-decay = logsigmoid(logit) / 16


class GatedLinearAttention(nn.Module):
    """Bidirectional gated linear attention with 2D gating locality injection.

    A depthwise 3x3 convolution computes the local map `s`. Queries, keys (D/2 channels each),
    values (D) and the decays of the two directions are projected from `s`. A sigmoid gate blends
    the normalised result of the scan and the normalised `s`. Source: ViG (AAAI 2025), section 3;
    hustvl/ViG `classification/models/vig.py`.

    If the collection "intermediates" is mutable, the module stores in it `projected` [B, T, 3D + R]
    and `local` [B, T, D], the inputs of `kernels_pallas.vig_mixer`; `log_decay_fwd` and
    `log_decay_bwd` [B, T, H, K], the log-decays of the two directions; and `local_gate` [B, T, D],
    the weight of the scan, where 1 minus it is the weight of `s`. Otherwise none of them is
    computed. With `Padding`, their tokens are in the order of `Padding.flatten`.

    Attributes:
        features: model width D.
        num_heads: number of heads H; each has D/2/H key and D/H value channels.
        kernel_init: initialiser of the linear maps; the depthwise convolution has a separate one.
        use_act_in_conv: SiLU after the depthwise convolution.
        use_out_act: SiLU before the output projection.
        merge_scale: factor on the sum of the two directions. Upstream trains with 1/2; see
            `vig_jax.models.vig.ViG`.
        gla_implementation: see `kernels_pallas.vig_mixer`.
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
        activation = "silu" if self.use_act_in_conv else None
        self.dwconv = DepthwiseConv(activation, self.dtype, self.param_dtype)
        self.qkv_proj = LinearWeights(2 * self.features, self.kernel_init, self.param_dtype)
        self.gk_proj_down = LinearWeights(GATE_RANK, self.kernel_init, self.param_dtype)
        self.gk_proj_up = LinearWeights(self.features, self.kernel_init, self.param_dtype, True)
        self.g_proj = LinearWeights(self.features, self.kernel_init, self.param_dtype, True)
        self.g_norm = HeadScale(self.param_dtype)
        self.l_norm = HeadScale(self.param_dtype)
        self.o_proj = LinearWeights(self.features, self.kernel_init, self.param_dtype)

    def __call__(
        self, x: Float[Array, "B h w D"], layout: Padding | Packing | None = None
    ) -> Float[Array, "B h w D"]:
        """Returns the mixed map.

        With `Padding`, the result for each valid part is that of the part alone, and zero in the
        padding: pads have zeros in `s`, so their queries, keys and values are zero, too. With
        `Packing`, maps are rows of tokens [R, T, 1, D], and the result for each image is that of
        the image alone.
        """
        batch, rows, columns, _ = x.shape  # a batch of no images has no size to infer
        if isinstance(layout, Padding):
            s = layout.flatten(self.dwconv(layout.zero_pads(x)))
        else:
            s = self.dwconv(x, layout).reshape(batch, rows * columns, self.features)
        value_width = self.features // self.num_heads
        mixer = functools.partial(
            _mix_packed if isinstance(layout, Packing) else _mix_part,
            heads=self.num_heads,
            scale=self.merge_scale * (value_width // 2) ** -0.5,
            gate_normalizer=GATE_NORMALIZER,
            epsilon=1e-6,
            activation="silu" if self.use_out_act else None,
            implementation=self.gla_implementation,
        )
        (qkv,), (down,) = self.qkv_proj(self.features), self.gk_proj_down(self.features)
        gate, gate_bias = self.g_proj(self.features)
        decay_kernel, decay_bias = self.gk_proj_up(GATE_RANK)
        merged = jnp.concatenate([qkv, gate, down], axis=1)
        (out_kernel,) = self.o_proj(self.features)
        s, merged, decay_kernel, out_kernel = nn.dtypes.promote_dtype(
            s, merged, decay_kernel, out_kernel, dtype=self.dtype
        )
        dot = functools.partial(jnp.dot, precision=precision(self.dtype))
        projected = shard_kernel(dot, (MAPS, WHOLE), MAPS)(s, merged)
        if self.is_mutable_collection("intermediates"):
            self._capture(projected, s, gate_bias, decay_kernel, decay_bias)
        borders = (layout.cu_seqlens,) if isinstance(layout, Packing) else ()
        specs = (MAPS, MAPS, *[WHOLE] * 6, *[ROWS] * len(borders))
        out = shard_kernel(mixer, specs, MAPS)(
            projected,
            s,
            gate_bias,
            decay_kernel,
            decay_bias,
            self.g_norm(value_width),
            self.l_norm(value_width),
            out_kernel,
            *borders,
        )
        return layout.unflatten(out) if isinstance(layout, Padding) else out.reshape(x.shape)

    def _capture(
        self,
        projected: Float[Array, "B T E"],
        local: Float[Array, "B T D"],
        gate_bias: Float[Array | np.ndarray, " D"],
        decay_kernel: Float[Array, "R D"],
        decay_bias: Float[Array | np.ndarray, " D"],
    ) -> None:
        """Stores the inputs and the gates of the mixer as intermediates, gates in float32."""
        wide = float32_or_wider(projected.dtype)
        gate, features = jnp.split(projected[..., 2 * self.features :], [self.features], axis=-1)
        highest = jax.lax.Precision.HIGHEST
        logits = jnp.dot(features.astype(wide), decay_kernel.astype(wide), precision=highest)
        log_decays = jax.nn.log_sigmoid(logits + decay_bias.astype(wide)) / GATE_NORMALIZER
        forward, backward = (
            part.reshape(*part.shape[:2], self.num_heads, -1)
            for part in jnp.split(log_decays, 2, axis=-1)
        )
        gates = {
            "projected": projected,
            "local": local,
            "log_decay_fwd": forward,
            "log_decay_bwd": backward,
            "local_gate": jax.nn.sigmoid(gate.astype(wide) + gate_bias.astype(wide)),
        }
        for name, value in gates.items():
            self.sow("intermediates", name, value)


def _mix_part(*arrays: jax.Array, **options: Any) -> jax.Array:
    """Computes the mixer for the tokens of this device; states arrive from the other devices."""
    return vig_mixer(*arrays, **options, exchange=exchange_states())


def _mix_packed(*arrays: jax.Array, **options: Any) -> jax.Array:
    """Computes the mixer for rows of images: the rows of this device become one row."""
    projected, local, *weights, borders = arrays
    rows, tokens, _ = projected.shape
    cu_seqlens = borders + tokens * jnp.arange(rows, dtype=borders.dtype)[:, None]
    row = (x.reshape(1, rows * tokens, -1) for x in (projected, local))
    out = vig_mixer(*row, *weights, **options, cu_seqlens=cu_seqlens.reshape(-1))
    return out.reshape(rows, tokens, -1)


class HeadScale(nn.Module):
    """Weights of a norm over the channels of a head, shared by all heads."""

    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, width: int) -> Float[jax.Array | np.ndarray, " V"]:
        return self.param("scale", nn.initializers.ones, (width,), self.param_dtype)
