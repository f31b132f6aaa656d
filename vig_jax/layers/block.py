"""The residual block of both model families."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from vig_jax.layers.drop_path import DropPath
from vig_jax.layers.gated_linear_attention import GatedLinearAttention
from vig_jax.layers.linear import Dtype, Initializer, xavier_mixer
from vig_jax.layers.mlp import SwiGLU
from vig_jax.layers.norm import Norm, Residual
from vig_jax.layers.packing import Packing
from vig_jax.layers.padding import Padding


class Block(nn.Module):
    """`x + mixer(norm(x))`, then `x + mlp(norm(x))`, each branch under drop path.

    The next norm adds a branch to the stream. The MLP's branch is still pending in the result.

    Attributes:
        features: model width D.
        num_heads: heads of the mixer.
        mlp_hidden: inner width of the gated MLP.
        drop_path: probability that an image skips a branch.
        norm: returns a new normalisation over channels; called once per branch.
        mixer_init: initialiser of the mixer's linear maps.
        use_act_in_conv, use_out_act, merge_scale, gla_implementation: see `GatedLinearAttention`.
        dtype: dtype of the computation; None promotes inputs and parameters.
        param_dtype: dtype of the parameters.
    """

    features: int
    num_heads: int
    mlp_hidden: int
    drop_path: float
    norm: Callable[[], Norm]
    mixer_init: Initializer = xavier_mixer
    use_act_in_conv: bool = False
    use_out_act: bool = False
    merge_scale: float = 0.5
    gla_implementation: str | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.attn_norm = self.norm()
        self.attn = GatedLinearAttention(
            self.features,
            self.num_heads,
            kernel_init=self.mixer_init,
            use_act_in_conv=self.use_act_in_conv,
            use_out_act=self.use_out_act,
            merge_scale=self.merge_scale,
            gla_implementation=self.gla_implementation,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        self.mlp_norm = self.norm()
        self.mlp = SwiGLU(self.features, self.mlp_hidden, self.dtype, self.param_dtype)
        self.attn_drop = DropPath(self.drop_path)
        self.mlp_drop = DropPath(self.drop_path)

    def __call__(
        self, stream: Residual, train: bool, layout: Padding | Packing | None = None
    ) -> Residual:
        def dropped(drop: DropPath) -> jax.Array | None:
            if not isinstance(layout, Packing):
                return drop(stream.x.shape[0], train)
            rows, borders = layout.cu_seqlens.shape
            scale = drop(rows * (borders - 1), train)
            return None if scale is None else layout.at_tokens(scale.reshape(rows, borders - 1))

        x, normed = self.attn_norm.add(stream)
        stream = Residual(x, self.attn(normed, layout), dropped(self.attn_drop))
        x, normed = self.mlp_norm.add(stream)
        return Residual(x, self.mlp(normed), dropped(self.mlp_drop))


def block_class(remat: bool) -> type[Block]:
    """Returns `Block`, or with `remat` a block that recomputes its inner values for the gradient.

    The backward pass then keeps the stream and one branch per block instead of every intermediate
    value, for the time of about one more forward pass. Parameters and values do not change.
    """
    return nn.remat(Block, static_argnums=(2,)) if remat else Block  # 2: `train`
