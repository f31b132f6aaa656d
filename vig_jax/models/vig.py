"""Plain ViG: blocks at one resolution."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vig_jax.errors import ConfigError
from vig_jax.heads.classification import classification_head, mean_pool
from vig_jax.layers.block import block_class
from vig_jax.layers.linear import Dtype, normal_002
from vig_jax.layers.mlp import swiglu_hidden
from vig_jax.layers.norm import Residual, rms_norm
from vig_jax.layers.packing import Packing
from vig_jax.layers.padding import Padding, valid_cells, valid_tokens
from vig_jax.layers.pos_embed import (
    resize_pos_embed,
    resize_pos_embed_at,
    resize_pos_embed_to_sizes,
)
from vig_jax.layers.stem import ConvStem, smallest_image
from vig_jax.models.backbone import (
    FeatureInfo,
    Sizes,
    check_channels,
    check_classes,
    check_heads,
    check_images,
    check_implementation,
    check_indices,
    checked_packed_sizes,
    checked_sizes,
    drop_path_rates,
)
from vig_jax.models.parameter_groups import HEAD_PREFIXES, layer_ids
from vig_jax.sharding.sequence import check_rows


class ViG(nn.Module):
    """Plain ViG classifier and backbone.

    Source: "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention"
    (AAAI 2025); hustvl/ViG `classification/models/vig.py`.

    Attributes:
        num_classes: width of the head; 0 means no head.
        img_size: image side in pixels of the position embedding; it is resized for other sizes.
        patch_size: side of a patch in pixels, even.
        embed_dim: model width D.
        depth: number of blocks.
        num_heads: heads of the mixer; D/2 must be a multiple of it.
        drop_path_rate: rate of the last block; the rates rise linearly from 0.
        use_act_in_conv: SiLU after the mixer's depthwise convolution.
        use_out_act: SiLU before the mixer's output projection.
        merge_scale: factor on the sum of the two scan directions; upstream trains with 1/2.
            Upstream's evaluation code halves twice (1/4). The RMS norm that follows cancels the
            factor up to its epsilon, so the logits of the published weights change by about 4e-6
            relative. Set 0.25 only to reproduce upstream's evaluation to the last digit.
        gla_implementation: see `kernels_pallas.vig_mixer`.
        remat: recompute each block in the backward pass: less memory, more time.
        in_chans: channels of the images.
        dtype: dtype of the computation; None promotes images and parameters.
        param_dtype: dtype of the parameters.
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
    in_chans: int = 3
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def __post_init__(self) -> None:
        if self.patch_size < 2 or self.patch_size % 2 or self.img_size < self.patch_size:
            raise ConfigError(
                f"patch_size={self.patch_size} must be even, at least 2 and at most img_size="
                f"{self.img_size}"
            )
        if not isinstance(self.num_heads, int):
            raise ConfigError(f"num_heads={self.num_heads} must be one number: ViG has no stages")
        if self.depth < 1:
            raise ConfigError(f"depth={self.depth} must be at least 1")
        check_heads(self.embed_dim, self.num_heads)
        check_classes(self.num_classes)
        check_channels(self.in_chans)
        check_implementation(self.gla_implementation)
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of the map that `features` returns by default."""
        return (FeatureInfo(self.embed_dim, self.patch_size, "norm"),)

    @property
    def native_size(self) -> int:
        """Image side in pixels that the position embedding is made for."""
        return self.img_size

    @property
    def smallest_size(self) -> int:
        """Smallest image side in pixels that the stem accepts."""
        return smallest_image(self.patch_size)

    @property
    def pos_embed_grid(self) -> int:
        """Rows and columns of the position embedding."""
        return self.img_size // self.patch_size

    @property
    def stage_sizes(self) -> tuple[tuple[int, int], ...]:
        """Width and number of blocks of the only stage."""
        return ((self.embed_dim, self.depth),)

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """First names of the parameter paths that are the head."""
        return HEAD_PREFIXES

    def layer_ids(self, params: Any) -> tuple[Any, int]:
        """Returns layer numbers; see `vig_jax.models.backbone.ParameterGroups`."""
        return layer_ids(params)

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
        if self.num_classes:
            self.head = classification_head(self.num_classes, self.param_dtype)

    def __call__(
        self, images: Float[Array, "B H W in_chans"], train: bool = False
    ) -> Float[Array, "B classes"]:
        """Returns class logits, or without a head the mean of the last map; float32 or wider.

        Args:
            images: normalised pixels of any size that the stem accepts, square or not.
            train: enables drop path, which needs `rngs={"dropout": key}`.

        Raises:
            ValueError: the images are not [B, H, W, in_chans] floats, or (ConfigError) too small.
        """
        (x,) = self.features(images, train=train)
        pooled = mean_pool(x)
        return self.head(pooled) if self.num_classes else pooled

    def features(
        self,
        images: Float[Array, "B H W in_chans"],
        *,
        out_indices: Sequence[int] | None = None,
        train: bool = False,
        norm_last: bool = True,
        sizes: Sizes | None = None,
        padded_right: bool = True,
    ) -> tuple[Float[Array, "B h w D"], ...]:
        """Returns maps of the residual stream, all of stride `patch_size`.

        Args:
            images: as for `__call__`.
            out_indices: the blocks after which to return the stream; -1 is the last. Blocks above
                the highest index are not computed. None means the last block.
            train: as for `__call__`.
            norm_last: apply the model's norm to the map of the last block; no other map has it.
            sizes: height and width of the valid part of each padded image, in multiples of
                `patch_size`; see `vig_jax.models.backbone.Backbone`. The position embedding is
                resized to the valid part.
            padded_right: False if no image is padded on the right.

        Returns:
            One map for each index.

        Raises:
            ValueError: as for `__call__`, or (ConfigError) an index is out of range, or a size that
                is not traced does not fit.
        """
        check_images(images, self.in_chans)
        indices = check_indices((-1,) if out_indices is None else out_indices, self.depth, "blocks")
        x, padding = self._embed(images, sizes, padded_right)
        stream = Residual(x)
        maps: dict[int, jax.Array] = {}
        for i, block in enumerate(self.blocks[: max(indices) + 1]):
            stream = block(stream, train, padding)
            if i in indices and not (norm_last and i == self.depth - 1):
                stream = Residual(stream.total())
                maps[i] = stream.x
        if norm_last and self.depth - 1 in indices:
            _, maps[self.depth - 1] = self.norm.add(stream)
        return tuple(maps[i] if padding is None else padding.zero_pads(maps[i]) for i in indices)

    def packed(
        self,
        patches: Float[Array, "R T P P in_chans"],
        sizes: Int[Array | np.ndarray, "R N 2"],
        train: bool = False,
    ) -> Float[Array, "R N classes"]:
        """Returns for each image what `__call__` returns for the image alone, up to rounding.

        Images of different sizes lie side by side in rows of T tokens. A token is a patch; those of
        an image follow each other row by row, and the images in their order. What a row holds after
        them does not matter. One compiled program serves all sizes.
        `vig_jax.inference.packing.pack` makes the arguments.

        With `train`, drop path is drawn per image: for image n of row r as for image r * N + n of a
        batch.

        Args:
            patches: normalised pixels, P = `patch_size`.
            sizes: rows and columns of each image in patches; 0 for no image, whose result has no
                meaning. That all images of a row have T tokens together is not checked if the array
                is traced.
            train: as for `__call__`.

        Raises:
            ValueError: the arrays do not fit together or (ConfigError) to the model, or the rows of
                images are split over devices.
        """
        sizes = checked_packed_sizes(patches, sizes, self.patch_size, self.in_chans)
        packing = Packing.from_sizes(sizes, patches.shape[1])
        x = self.patch_embed(packing.zero_rest(patches), packing)
        grids, places = (packing.height, packing.width), (packing.row, packing.column)
        position = resize_pos_embed_at(self.pos_embed, grids, places)
        stream = Residual(x + position[:, :, None].astype(x.dtype))
        for block in self.blocks:
            stream = block(stream, train, packing)
        _, x = self.norm.add(stream)
        pooled = packing.mean(x[:, :, 0])
        return self.head(pooled) if self.num_classes else pooled

    def _embed(
        self, images: jax.Array, sizes: Sizes | None, padded_right: bool
    ) -> tuple[jax.Array, Padding | None]:
        """Returns the tokens with their position embedding, and their padding."""
        check_rows(images.shape[1], self.patch_size)
        if sizes is None:
            x = self.patch_embed(images)
            _, h, w, _ = x.shape
            return x + resize_pos_embed(self.pos_embed, (h, w)).astype(x.dtype), None
        if self.patch_size < 4:  # the stem then makes a token more than whole patches
            raise ConfigError(f"patch_size={self.patch_size} must be at least 4 with sizes")
        sizes = checked_sizes(sizes, images, self.patch_size, padded_right)
        x = self.patch_embed(valid_cells(sizes, images.shape[1:3]).zero_pads(images))
        grid, tokens = x.shape[1:3], sizes // self.patch_size
        position = resize_pos_embed_to_sizes(self.pos_embed, tokens, grid)
        return x + position.astype(x.dtype), valid_tokens(tokens, grid, padded_right)
