"""Semantic segmentation: a ViG backbone with UperNet's heads."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float

from vig_jax.errors import ConfigError
from vig_jax.heads.fcn import FCNHead
from vig_jax.heads.pyramid import Feature2Pyramid
from vig_jax.heads.upernet import LEVELS, UPerHead
from vig_jax.models.backbone import FeatureInfo
from vig_jax.models.dense import DenseModel, create_dense_model
from vig_jax.models.vig import ViG
from vig_jax.models.vig_h import ViGH

AUXILIARY_LEVEL = 2  # stride 16


class Segmenter(DenseModel):
    """UperNet on ViG: class logits for every position of stride 4.

    Hierarchical models supply the four maps of the heads. Plain models supply the residual stream
    after each quarter of their blocks (after blocks 2, 5, 8 and 11 of twelve), without the final
    norm, and `Feature2Pyramid` changes their strides; a model with fewer than four blocks supplies
    some maps twice. Source: the configurations of BEiT (plain) and Swin (hierarchical) for
    mmsegmentation.

    Attributes:
        backbone: a model without head, num_classes=0; hierarchical ones with out_norms=True.
        num_classes: number of classes K.
        channels: width of the decode head.
        aux_channels: width of the auxiliary head, which only training uses; 0 means none.
        dropout: see `UPerHead`.
        norm_last: plain models: apply the backbone's norm to the map of the last block.
    """

    num_classes: int = 150
    channels: int = 512
    aux_channels: int = 256
    dropout: float = 0.1
    norm_last: bool = False

    def __post_init__(self) -> None:
        plain = isinstance(self.backbone, ViG)
        if self.num_classes < 1:
            raise ConfigError(f"num_classes={self.num_classes} must be at least 1")
        if self.channels < 1 or self.aux_channels < 0:
            raise ConfigError(
                f"channels={self.channels} must be at least 1, and aux_channels="
                f"{self.aux_channels} at least 0 (0: no auxiliary head)"
            )
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"dropout={self.dropout} must be at least 0 and below 1")
        if self.norm_last and not plain:
            raise ConfigError(
                "norm_last=True is for plain models; hierarchical ones have out_norms=True instead"
            )
        super().__post_init__()

    @property
    def feature_info(self) -> tuple[FeatureInfo, ...]:
        """Channels and stride of the maps that the heads read."""
        if isinstance(self.backbone, ViGH):
            return self.backbone.feature_info
        width, stride = self.backbone.embed_dim, self.backbone.patch_size
        modules = ("upsample_4x_3", "upsample_2x_0", "", "")
        return tuple(
            FeatureInfo(width, stride * 2**i // 4, f"neck/{name}".rstrip("/"))
            for i, name in enumerate(modules)
        )

    @property
    def smallest_size(self) -> int:
        """Smallest image side in pixels: plain models need two tokens for the coarsest map."""
        if isinstance(self.backbone, ViG):
            return self.backbone.smallest_size + self.backbone.patch_size
        return self.backbone.smallest_size

    @property
    def head_prefixes(self) -> tuple[str, ...]:
        """First names of the parameter paths that are not the backbone."""
        return ("neck", "decode_head", "auxiliary_head")

    def setup(self) -> None:
        dtypes = {"dtype": self.backbone.dtype, "param_dtype": self.backbone.param_dtype}
        if isinstance(self.backbone, ViG):
            self.neck = Feature2Pyramid(**dtypes)
        self.decode_head = UPerHead(self.num_classes, self.channels, self.dropout, **dtypes)
        if self.aux_channels:
            self.auxiliary_head = FCNHead(
                self.num_classes, self.aux_channels, self.dropout, **dtypes
            )

    def __call__(
        self, images: Float[Array, "B H W in_chans"], train: bool = False
    ) -> Float[Array, "B h w K"]:
        """Returns class logits at stride 4, float32 or wider; sizes are rounded up.

        Args:
            images: normalised pixels, square or not, at least `smallest_size` on each side.
            train: enables drop path, dropout and the statistics of the batch, which need
                `rngs={"dropout": key}` and `mutable=["batch_stats"]`.

        Raises:
            ValueError: the images are not [B, H, W, in_chans] floats, or (ConfigError) too small.
            ConfigError: training with a batch that leaves one value per channel.
        """
        maps = self.features(images, train=train)
        if self.is_initializing() and self.aux_channels:
            self.auxiliary_head(maps[AUXILIARY_LEVEL], train)  # logits do not use its parameters
        return self.decode_head(maps, train)

    def training_logits(
        self, images: Float[Array, "B H W in_chans"], train: bool = True
    ) -> tuple[Float[Array, "B h w K"], Float[Array, "B _ _ K"] | None]:
        """Returns the logits of the decode head and of the auxiliary head (stride 16), or None."""
        maps = self.features(images, train=train)
        logits = self.decode_head(maps, train)
        if not self.aux_channels:
            return logits, None
        return logits, self.auxiliary_head(maps[AUXILIARY_LEVEL], train)

    def features(
        self,
        images: Float[Array, "B H W in_chans"],
        *,
        out_indices: Sequence[int] | None = None,
        train: bool = False,
    ) -> tuple[Float[Array, "B _ _ _"], ...]:
        """Returns the four maps that the heads read, of strides 4, 8, 16 and 32.

        Args:
            images: as for `__call__`.
            out_indices: the maps to return; None means all four.
            train: as for `__call__`.
        """
        if isinstance(self.backbone, ViGH):
            maps = self.backbone.features(images, train=train)
        else:
            if min(images.shape[1:3]) < self.smallest_size:
                raise ConfigError(
                    f"images are {images.shape[1]}x{images.shape[2]} pixels; the pyramid of this "
                    f"model needs at least {self.smallest_size} on each side"
                )
            quarters = [math.ceil(self.backbone.depth * i / LEVELS) - 1 for i in range(1, 5)]
            stream = self.backbone.features(
                images, out_indices=quarters, train=train, norm_last=self.norm_last
            )
            maps = self.neck(stream, train)
        return maps if out_indices is None else tuple(maps[i] for i in out_indices)


def create_segmenter(name: str, num_classes: int = 150, **overrides: Any) -> Segmenter:
    """Builds a model for semantic segmentation by the name of its backbone.

    Args:
        name: one of `list_models()`.
        num_classes: number of classes.
        **overrides: fields of `vig_jax.models.Segmenter` or of its backbone; see `create_model`.
            Hierarchical backbones have out_norms=True if it is not given.

    Returns:
        A `flax.linen` module; `model.apply(variables, images)` returns logits [B, h, w, K] at
        stride 4.

    Raises:
        ConfigError: unknown name or field; the message suggests the nearest ones.
    """
    return create_dense_model(Segmenter, name, num_classes, overrides)
