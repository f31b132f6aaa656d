"""Hierarchical ViG: four stages; each halves the resolution and widens the channels."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.errors import ConfigError
from vig_jax.heads.classification import classification_head, mean_pool
from vig_jax.layers.block import block_class
from vig_jax.layers.linear import Dtype, normal_002
from vig_jax.layers.mlp import swiglu_hidden
from vig_jax.layers.norm import Residual, layer_norm
from vig_jax.layers.padding import Padding, valid_cells, valid_tokens
from vig_jax.layers.stem import ConvStem, Downsample
from vig_jax.models.backbone import (
    FeatureInfo,
    Sizes,
    check_channels,
    check_classes,
    check_heads,
    check_images,
    check_implementation,
    check_indices,
    checked_sizes,
    drop_path_rates,
)
from vig_jax.models.parameter_groups import HEAD_PREFIXES, layer_ids
from vig_jax.sharding.sequence import check_rows

_STRIDE = 32  # of the last stage


class Stage(nn.Module):
    """Blocks at one resolution and width.

    Attributes:
        features: width D.
        num_heads: heads of the mixers.
        drop_paths: the drop path rate of each block; its length is the number of blocks.
        use_act_in_conv, use_out_act, gla_implementation, remat, dtype, param_dtype: see `ViGH`.
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

    def __call__(
        self, x: Float[Array, "B h w D"], train: bool, padding: Padding | None
    ) -> Residual:
        stream = Residual(x)
        for block in self.blocks:
            stream = block(stream, train, padding)
        return stream


class ViGH(nn.Module):
    """Hierarchical ViG (ViG-H) classifier and backbone.

    Source: "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention"
    (AAAI 2025); hustvl/ViG `classification/models/vig_h.py`.

    Attributes:
        num_classes: width of the head; 0 means no head.
        embed_dims: width of each stage.
        depths: number of blocks of each stage.
        num_heads: heads of each stage's mixers; half a stage's width must be a multiple of them.
        drop_path_rate: rate of the last block; the rates rise linearly from 0 over all stages.
        out_norms: apply a layer norm to each map that `features` returns, as dense tasks need. Each
            norm adds parameters that the published weights do not have.
        use_act_in_conv: SiLU after the mixer's depthwise convolution.
        use_out_act: SiLU before the mixer's output projection.
        gla_implementation: see `kernels_pallas.vig_mixer`.
        remat: recompute each block in the backward pass: less memory, more time.
        in_chans: channels of the images.
        dtype: dtype of the computation; None promotes images and parameters.
        param_dtype: dtype of the parameters.
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
    in_chans: int = 3
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        for field in ("embed_dims", "depths", "num_heads"):
            value = getattr(self, field)
            if not isinstance(value, Sequence) or len(value) != 4 or min(value) < 1:
                raise ConfigError(f"{field}={value} must be four positive numbers, one per stage")
            setattr(self, field, tuple(value))  # jit needs a hash, which a list lacks
        check_classes(self.num_classes)
        check_channels(self.in_chans)
        for embed_dim, num_heads in zip(self.embed_dims, self.num_heads, strict=True):
            check_heads(embed_dim, num_heads)
        check_implementation(self.gla_implementation)
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of the maps that `features` returns by default."""
        return tuple(
            FeatureInfo(channels, 4 * 2**i, f"{'out_norm' if self.out_norms else 'stages'}_{i}")
            for i, channels in enumerate(self.embed_dims)
        )

    @property
    def native_size(self) -> None:
        """No image size is special: there is no position embedding."""
        return

    @property
    def smallest_size(self) -> int:
        """Smallest image side in pixels that leaves a token in the last stage."""
        return _STRIDE

    @property
    def pos_embed_grid(self) -> None:
        """There is no position embedding."""
        return

    @property
    def stage_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and number of blocks of each stage."""
        return tuple(zip(self.embed_dims, self.depths, strict=True))

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """First names of the parameter paths that are the head."""
        return HEAD_PREFIXES

    def layer_ids(self, params: Any) -> tuple[Any, int]:
        """Returns layer numbers; see `vig_jax.models.backbone.ParameterGroups`."""
        return layer_ids(params)

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
        self.downsample = [Downsample(features, *dtypes) for features in self.embed_dims[1:]]
        self.out_norm = [layer_norm(self.param_dtype) for _ in range(4 if self.out_norms else 0)]
        self.norm = layer_norm(self.param_dtype)
        if self.num_classes:
            self.head = classification_head(self.num_classes, self.param_dtype)

    def __call__(
        self, images: Float[Array, "B H W in_chans"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Returns class logits, or without a head pooled features; float32 or wider.

        Args:
            images: normalised pixels, at least 32 on each side, square or not; odd sizes round up
                at every halving.
            train: enables drop path, which needs `rngs={"dropout": key}`.

        Raises:
            ValueError: the images are not [B, H, W, in_chans] floats, or (ConfigError) too small.
        """
        streams, _ = self._stages(images, range(4), train)
        if self.is_initializing():
            for i, stream in streams.items():  # logits do not use these parameters
                self._map(i, stream)
        _, x = self.norm.add(streams[3])
        pooled = mean_pool(x)
        return self.head(pooled) if self.num_classes else pooled

    def features(
        self,
        images: Float[Array, "B H W in_chans"],
        *,
        out_indices: Sequence[int] | None = None,
        train: bool = False,
        sizes: Sizes | None = None,
        padded_right: bool = True,
    ) -> tuple[Float[Array, "B h w D"], ...]:
        """Returns the maps at the end of the stages, of strides 4, 8, 16 and 32.

        Args:
            images: as for `__call__`.
            out_indices: the stages to return; -1 is the last. Stages above the highest index are
                not computed. None means all four.
            train: as for `__call__`.
            sizes: height and width of the valid part of each padded image, in multiples of 32; see
                `vig_jax.models.backbone.Backbone`.
            padded_right: False if no image is padded on the right.

        Returns:
            One map for each index: normalised with `out_norms`, else the residual stream.

        Raises:
            ValueError: as for `__call__`, or (ConfigError) an index is out of range, or a size that
                is not traced does not fit.
        """
        indices = check_indices(range(4) if out_indices is None else out_indices, 4, "stages")
        streams, paddings = self._stages(images, indices, train, sizes, padded_right)
        maps = {i: self._map(i, streams[i]) for i in indices}
        return tuple(paddings[i].zero_pads(maps[i]) if i in paddings else maps[i] for i in indices)

    def _stages(
        self,
        images: jax.Array,
        indices: Sequence[int],
        train: bool,
        sizes: Sizes | None = None,
        padded_right: bool = True,
    ) -> tuple[dict[int, Residual], dict[int, Padding]]:
        """Returns the streams at the end of the stages up to the last of `indices`, by stage.

        With `sizes`, the second result has their paddings. The convolutions of stride 2 need none:
        a valid part has an even number of rows and columns, and no window reaches beyond it.
        """
        check_images(images, self.in_chans)
        if min(images.shape[1:3]) < _STRIDE:
            raise ConfigError(
                f"images are {images.shape[1]}x{images.shape[2]} pixels; a model of four stages "
                f"needs at least {_STRIDE} on each side"
            )
        check_rows(images.shape[1], _STRIDE)
        last = max(indices)
        streams: dict[int, Residual] = {}
        paddings: dict[int, Padding] = {}
        if sizes is not None:
            sizes = checked_sizes(sizes, images, _STRIDE, padded_right)
            images = valid_cells(sizes, images.shape[1:3]).zero_pads(images)
        x = self.patch_embed(images)
        for i, stage in enumerate(self.stages[: last + 1]):
            if sizes is not None:
                cells = sizes // self.feature_info[i].reduction
                paddings[i] = valid_tokens(cells, x.shape[1:3], padded_right)
            streams[i] = stage(x, train, paddings.get(i))
            if i < last:
                streams[i] = Residual(streams[i].total())  # read more than once: added once
                x = self.downsample[i](streams[i].x)
        return streams, paddings

    def _map(self, stage: int, stream: Residual) -> jax.Array:
        """Returns what `features` returns for the stream at the end of a stage."""
        return self.out_norm[stage].add(stream)[1] if self.out_norms else stream.total()
