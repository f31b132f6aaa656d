"""Plain ViG: one resolution, twelve blocks."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vig_jax.layers.drop_path import DropPath
from vig_jax.layers.gated_linear_attention import GatedLinearAttention
from vig_jax.layers.linear import Dtype, dense, normal_002
from vig_jax.layers.mlp import SwiGLU
from vig_jax.layers.norm import RMSNorm
from vig_jax.layers.pos_embed import resize_pos_embed
from vig_jax.layers.stem import ConvStem


class FeatureInfo(NamedTuple):
    """One entry of `feature_info`, in timm's terms."""

    num_chs: int  # channels
    reduction: int  # stride against the image
    module: str


class Block(nn.Module):
    """`x + mixer(norm(x))`, then `x + mlp(norm(x))`, each branch under drop path."""

    features: int
    num_heads: int
    mlp_hidden: int
    drop_path: float
    use_act_in_conv: bool
    use_out_act: bool
    merge_scale: float
    gla_implementation: str | None
    dtype: Dtype
    param_dtype: Dtype

    def setup(self) -> None:
        self.attn_norm = RMSNorm(param_dtype=self.param_dtype)
        self.attn = GatedLinearAttention(
            self.features,
            self.num_heads,
            use_act_in_conv=self.use_act_in_conv,
            use_out_act=self.use_out_act,
            merge_scale=self.merge_scale,
            gla_implementation=self.gla_implementation,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        self.mlp_norm = RMSNorm(param_dtype=self.param_dtype)
        self.mlp = SwiGLU(self.features, self.mlp_hidden, self.dtype, self.param_dtype)
        self.attn_drop = DropPath(self.drop_path)
        self.mlp_drop = DropPath(self.drop_path)

    def __call__(self, x: Float[Array, "B h w D"], train: bool) -> Float[Array, "B h w D"]:
        x = x + self.attn_drop(self.attn(self.attn_norm(x)), train)
        return x + self.mlp_drop(self.mlp(self.mlp_norm(x)), train)


class ViG(nn.Module):
    """Plain ViG classifier and backbone.

    Source: "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention"
    (AAAI 2025); hustvl/ViG `classification/models/vig.py`.

    Attributes:
        num_classes: width of the head.
        img_size: side in pixels the position embedding is made for; other image sizes resize it.
        patch_size: pixels a token covers, even.
        embed_dim: model width D.
        depth: number of blocks.
        num_heads: heads of the mixer; D/2 must be a multiple of it.
        drop_path_rate: of the last block; the rates rise linearly from 0.
        use_act_in_conv: SiLU after the mixer's depthwise convolution.
        use_out_act: SiLU before the mixer's output projection.
        merge_scale: factor on the sum of the two scan directions. 1/2, as upstream trains.
            Upstream's evaluation code halves twice (1/4); the RMS norm that follows cancels all
            but its epsilon, so the published weights' logits move by about 4e-6 relative. Set
            0.25 only to compare with upstream's evaluation to the last digit.
        gla_implementation: see `kernels_pallas.bidirectional_gla`.
        dtype: of the computation; None promotes images and parameters.
        param_dtype: of the parameters.
    """

    num_classes: int = 1000
    img_size: int = 224
    patch_size: int = 16
    embed_dim: int = 192
    depth: int = 12
    num_heads: int = 3
    drop_path_rate: float = 0.0
    use_act_in_conv: bool = False
    use_out_act: bool = False
    merge_scale: float = 0.5
    gla_implementation: str | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        if self.patch_size % 2 or self.img_size < self.patch_size:
            raise ValueError(
                f"patch_size={self.patch_size} must be even and at most img_size={self.img_size}"
            )
        if self.embed_dim % (2 * self.num_heads):
            raise ValueError(
                f"embed_dim={self.embed_dim} must be a multiple of 2 * num_heads "
                f"({2 * self.num_heads}), so that keys and values split into heads"
            )
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of what `features` returns."""
        return (FeatureInfo(self.embed_dim, self.patch_size, "norm"),)

    def setup(self) -> None:
        tokens = (self.img_size // self.patch_size) ** 2
        self.patch_embed = ConvStem(self.embed_dim, self.patch_size, self.dtype, self.param_dtype)
        self.pos_embed = self.param(
            "pos_embed", normal_002, (1, tokens, self.embed_dim), self.param_dtype
        )
        self.blocks = [
            Block(
                self.embed_dim,
                self.num_heads,
                mlp_hidden=256 * -(-int(8 * self.embed_dim / 3) // 256),
                drop_path=float(rate),
                use_act_in_conv=self.use_act_in_conv,
                use_out_act=self.use_out_act,
                merge_scale=self.merge_scale,
                gla_implementation=self.gla_implementation,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            for rate in np.linspace(0, self.drop_path_rate, self.depth)
        ]
        self.norm = RMSNorm(param_dtype=self.param_dtype)
        # The head is small: float32 logits cost nothing.
        self.head = dense(self.num_classes, normal_002, None, self.param_dtype, use_bias=True)

    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Class logits, float32 or wider.

        Args:
            images: normalised pixels of any size the stem accepts, square or not.
            train: drop path on; needs `rngs={"dropout": key}`.

        Raises:
            ValueError: the images are not [B, H, W, 3] floats or too small for the stem.
        """
        (x,) = self.features(images, train)
        pooled = jnp.mean(x, axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return self.head(pooled)

    def features(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> tuple[Float[Array, "B h w D"]]:
        """The normalised last map, as a tuple with one entry per stage (here one)."""
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images have shape {images.shape}; [B, H, W, 3] is wanted")
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"images are {images.dtype}; normalised floating-point pixels are wanted"
            )
        x = self.patch_embed(images)
        _, h, w, _ = x.shape
        x = x + resize_pos_embed(self.pos_embed, (h, w)).astype(x.dtype)
        for block in self.blocks:
            x = block(x, train)
        return (self.norm(x),)
