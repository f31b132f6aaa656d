"""Plain ViG: one resolution, twelve blocks."""

import functools

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.errors import ConfigError
from vig_jax.layers.block import block_class
from vig_jax.layers.linear import Dtype, dense, normal_002
from vig_jax.layers.mlp import swiglu_hidden
from vig_jax.layers.norm import Residual, rms_norm
from vig_jax.layers.pos_embed import resize_pos_embed
from vig_jax.layers.stem import ConvStem
from vig_jax.models.backbone import (
    FeatureInfo,
    check_heads,
    check_images,
    check_implementation,
    drop_path_rates,
    mean_pool,
)


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
        gla_implementation: see `kernels_pallas.vig_mixer`.
        remat: compute each block again in the backward pass: less memory, more time.
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
    remat: bool = False
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        if self.patch_size < 2 or self.patch_size % 2 or self.img_size < self.patch_size:
            raise ConfigError(
                f"patch_size={self.patch_size} must be even, at least 2 and at most img_size="
                f"{self.img_size}"
            )
        if not isinstance(self.num_heads, int):
            raise ConfigError(f"num_heads={self.num_heads} must be one number: there are no stages")
        if self.depth < 1:
            raise ConfigError(f"depth={self.depth} must be at least 1")
        check_heads(self.embed_dim, self.num_heads)
        check_implementation(self.gla_implementation)
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of what `features` returns."""
        return (FeatureInfo(self.embed_dim, self.patch_size, "norm"),)

    def setup(self) -> None:
        tokens = (self.img_size // self.patch_size) ** 2
        self.patch_embed = ConvStem(
            self.embed_dim, self.patch_size, "silu", self.dtype, self.param_dtype
        )
        self.pos_embed = self.param(
            "pos_embed", normal_002, (1, tokens, self.embed_dim), self.param_dtype
        )
        block = block_class(self.remat)
        self.blocks = [
            block(
                self.embed_dim,
                self.num_heads,
                mlp_hidden=swiglu_hidden(self.embed_dim, multiple_of=256),
                drop_path=rate,
                norm=functools.partial(rms_norm, self.param_dtype),
                use_act_in_conv=self.use_act_in_conv,
                use_out_act=self.use_out_act,
                merge_scale=self.merge_scale,
                gla_implementation=self.gla_implementation,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            for rate in drop_path_rates(self.drop_path_rate, self.depth)
        ]
        self.norm = rms_norm(self.param_dtype)
        # The head is small: float32 logits cost nothing.
        self.head = dense(self.num_classes, normal_002, None, self.param_dtype)

    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Class logits, float32 or wider.

        Args:
            images: normalised pixels of any size the stem accepts, square or not.
            train: drop path on; needs `rngs={"dropout": key}`.

        Raises:
            ValueError: the images are not [B, H, W, 3] floats, or (ConfigError) too small.
        """
        (x,) = self.features(images, train)
        return self.head(mean_pool(x))

    def features(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> tuple[Float[Array, "B h w D"]]:
        """The normalised last map, as a tuple with one entry per stage (here one)."""
        check_images(images)
        x = self.patch_embed(images)
        _, h, w, _ = x.shape
        stream = Residual(x + resize_pos_embed(self.pos_embed, (h, w)).astype(x.dtype))
        for block in self.blocks:
            stream = block(stream, train)
        return (self.norm(stream)[1],)
