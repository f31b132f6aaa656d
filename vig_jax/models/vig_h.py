"""Hierarchical ViG: four stages of halving resolution and growing width."""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.errors import ConfigError
from vig_jax.layers.block import block_class
from vig_jax.layers.linear import Dtype, dense, normal_002
from vig_jax.layers.mlp import swiglu_hidden
from vig_jax.layers.norm import Residual, layer_norm
from vig_jax.layers.stem import ConvStem, Downsample
from vig_jax.models.backbone import (
    FeatureInfo,
    check_heads,
    check_images,
    check_implementation,
    drop_path_rates,
    mean_pool,
)

_STRIDE = 32  # of the last stage


class Stage(nn.Module):
    """Blocks at one resolution and width.

    Attributes:
        features: width D.
        num_heads: heads of the mixers.
        drop_paths: drop path rate of each block; as many blocks.
        remat: see `ViGH`, as the others are.
    """

    features: int
    num_heads: int
    drop_paths: Sequence[float]
    use_act_in_conv: bool
    use_out_act: bool
    gla_implementation: str | None
    remat: bool
    dtype: Dtype
    param_dtype: Dtype

    def setup(self) -> None:
        block = block_class(self.remat)
        self.blocks = [
            block(
                self.features,
                self.num_heads,
                mlp_hidden=swiglu_hidden(self.features, multiple_of=32),
                drop_path=rate,
                norm=functools.partial(layer_norm, self.param_dtype),
                mixer_init=normal_002,
                use_act_in_conv=self.use_act_in_conv,
                use_out_act=self.use_out_act,
                gla_implementation=self.gla_implementation,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            for rate in self.drop_paths
        ]

    def __call__(self, x: Float[Array, "B h w D"], train: bool) -> Residual:
        stream = Residual(x)
        for block in self.blocks:
            stream = block(stream, train)
        return stream


class ViGH(nn.Module):
    """Hierarchical ViG (ViG-H) classifier and backbone.

    Source: "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention"
    (AAAI 2025); hustvl/ViG `classification/models/vig_h.py`.

    Attributes:
        num_classes: width of the head.
        embed_dims: width of each stage.
        depths: number of blocks of each stage.
        num_heads: heads of each stage's mixers; half a stage's width must be a multiple of them.
        drop_path_rate: of the last block; the rates rise linearly from 0 over all stages.
        out_norms: a layer norm for each map that `features` returns, as dense tasks want. They
            are parameters of their own, made when the model is initialised; the published weights
            have none.
        use_act_in_conv: SiLU after the mixer's depthwise convolution.
        use_out_act: SiLU before the mixer's output projection.
        gla_implementation: see `kernels_pallas.vig_mixer`.
        remat: compute each block again in the backward pass: less memory, more time.
        dtype: of the computation; None promotes images and parameters.
        param_dtype: of the parameters.
    """

    num_classes: int = 1000
    embed_dims: Sequence[int] = (96, 192, 384, 768)
    depths: Sequence[int] = (2, 2, 5, 2)
    num_heads: Sequence[int] = (3, 6, 12, 24)
    drop_path_rate: float = 0.0
    out_norms: bool = False
    use_act_in_conv: bool = False
    use_out_act: bool = False
    gla_implementation: str | None = None
    remat: bool = False
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        for field in ("embed_dims", "depths", "num_heads"):
            value = getattr(self, field)
            if not isinstance(value, Sequence) or len(value) != 4 or min(value) < 1:
                raise ConfigError(f"{field}={value} must be four positive numbers, one per stage")
            setattr(self, field, tuple(value))  # a list has no hash, which jit wants
        for embed_dim, num_heads in zip(self.embed_dims, self.num_heads, strict=True):
            check_heads(embed_dim, num_heads)
        check_implementation(self.gla_implementation)
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of what `features` returns."""
        return tuple(
            FeatureInfo(channels, 4 * 2**i, f"{'out_norm' if self.out_norms else 'stages'}_{i}")
            for i, channels in enumerate(self.embed_dims)
        )

    def setup(self) -> None:
        dtypes = self.dtype, self.param_dtype
        self.patch_embed = ConvStem(self.embed_dims[0], 4, "gelu", *dtypes)
        rates = iter(drop_path_rates(self.drop_path_rate, sum(self.depths)))
        self.stages = [
            Stage(
                features,
                num_heads,
                drop_paths=tuple(next(rates) for _ in range(depth)),
                use_act_in_conv=self.use_act_in_conv,
                use_out_act=self.use_out_act,
                gla_implementation=self.gla_implementation,
                remat=self.remat,
                dtype=self.dtype,
                param_dtype=self.param_dtype,
            )
            for features, depth, num_heads in zip(
                self.embed_dims, self.depths, self.num_heads, strict=True
            )
        ]
        self.downsample = [
            Downsample(features, in_features, *dtypes)
            for in_features, features in zip(self.embed_dims, self.embed_dims[1:], strict=False)
        ]
        self.out_norm = [layer_norm(self.param_dtype) for _ in range(4 if self.out_norms else 0)]
        self.norm = layer_norm(self.param_dtype)
        # The head is small: float32 logits cost nothing.
        self.head = dense(self.num_classes, normal_002, None, self.param_dtype)

    def __call__(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Class logits, float32 or wider.

        Args:
            images: normalised pixels, at least 32 on either side, square or not; odd sizes round
                up at every halving.
            train: drop path on; needs `rngs={"dropout": key}`.

        Raises:
            ValueError: the images are not [B, H, W, 3] floats, or (ConfigError) too small.
        """
        streams = self._stages(images, train)
        if self.is_initializing():
            self._normalised(streams)  # their parameters too, which logits do not use
        return self.head(mean_pool(self.norm(streams[-1])[1]))

    def features(
        self, images: Float[Array, "B H W 3"], train: bool = False
    ) -> tuple[Float[Array, "B h w D"], ...]:
        """The pyramid: the map at the end of each stage, strides 4, 8, 16 and 32.

        With `out_norms` each is normalised; without, they are the sums of the residual branches.
        """
        return self._normalised(self._stages(images, train))

    def _stages(self, images: jax.Array, train: bool) -> list[Residual]:
        """What the stages end with; a map that is read more than once is added up once."""
        check_images(images)
        if min(images.shape[1:3]) < _STRIDE:
            raise ConfigError(
                f"images are {images.shape[1]}x{images.shape[2]} pixels; a model of four stages "
                f"needs at least {_STRIDE} on either side"
            )
        streams = [self.stages[0](self.patch_embed(images), train)]
        for downsample, stage in zip(self.downsample, self.stages[1:], strict=True):
            streams[-1] = Residual(streams[-1].total())
            streams.append(stage(downsample(streams[-1].x), train))
        return streams

    def _normalised(self, streams: list[Residual]) -> tuple[jax.Array, ...]:
        if not self.out_norms:
            return tuple(stream.total() for stream in streams)
        return tuple(norm(stream)[1] for norm, stream in zip(self.out_norm, streams, strict=True))
