"""UPerHead: UperNet's decode head for semantic segmentation."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.resize import resize_bilinear
from vig_jax.heads.classification import PixelClassifier
from vig_jax.layers.conv_module import ConvModule
from vig_jax.layers.linear import Dtype
from vig_jax.layers.resize import adaptive_avg_pool

POOL_SCALES = (1, 2, 3, 6)  # of the pyramid pooling module: bins per side
LEVELS = 4


class UPerHead(nn.Module):
    """Logits from four maps: pyramid pooling of the coarsest one, then a feature pyramid.

    Source: "Unified Perceptual Parsing for Scene Understanding" (ECCV 2018); mmsegmentation
    `models/decode_heads/uper_head.py` and `psp_head.py`, whose names the parameters have.

    Attributes:
        num_classes: number of classes K.
        channels: width C of the head.
        dropout: share of the channels of a sample that are dropped before the logits in training;
            needs `rngs={"dropout": key}`.
        dtype: dtype of the convolutions; None promotes maps and kernels. Logits are float32 or
            wider.
        param_dtype: dtype of the parameters.
    """

    num_classes: int
    channels: int = 512
    dropout: float = 0.1
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        def module(kernel_size: int) -> ConvModule:
            return ConvModule(self.channels, kernel_size, self.dtype, self.param_dtype)

        self.psp_modules = [module(1) for _ in POOL_SCALES]
        self.bottleneck = module(3)
        self.lateral_convs = [module(1) for _ in range(LEVELS - 1)]
        self.fpn_convs = [module(3) for _ in range(LEVELS - 1)]
        self.fpn_bottleneck = module(3)
        self.channel_dropout = channel_dropout(self.dropout)
        self.conv_seg = PixelClassifier(self.num_classes, self.param_dtype)

    def __call__(
        self, maps: Sequence[Float[Array, "B _ _ _"]], train: bool = False
    ) -> Float[Array, "B h w K"]:
        """Returns logits at the size of the first map.

        Args:
            maps: four maps from fine to coarse, of any sizes and widths.
            train: enables dropout and the statistics of the batch, which need the "dropout" RNG
                stream and the mutable collection "batch_stats".
        """
        features = self.features(maps, train)
        return self.conv_seg(self.channel_dropout(features, deterministic=not train))

    def features(
        self, maps: Sequence[Float[Array, "B _ _ _"]], train: bool = False
    ) -> Float[Array, "B h w C"]:
        """Returns the map that the logits are computed from; see `__call__`."""
        laterals = [conv(x, train) for conv, x in zip(self.lateral_convs, maps[:-1], strict=True)]
        laterals.append(self.pooled(maps[-1], train))
        for i in reversed(range(1, LEVELS)):
            finer = laterals[i - 1]
            laterals[i - 1] = finer + resize_bilinear(laterals[i], finer.shape[1:3])
        levels = [conv(x, train) for conv, x in zip(self.fpn_convs, laterals[:-1], strict=True)]
        levels.append(laterals[-1])
        return self.fpn_bottleneck.of_resized(levels, levels[0].shape[1:3], train)

    def pooled(self, x: Float[Array, "B h w D"], train: bool) -> Float[Array, "B h w C"]:
        """Applies the pyramid pooling module to the coarsest map."""
        branches = [
            conv(adaptive_avg_pool(x, scale), train)
            for conv, scale in zip(self.psp_modules, POOL_SCALES, strict=True)
        ]
        return self.bottleneck.of_resized([x, *branches], x.shape[1:3], train)


def channel_dropout(rate: float) -> nn.Dropout:
    """Returns dropout of whole channels of a sample, PyTorch's `Dropout2d`."""
    return nn.Dropout(rate, broadcast_dims=(1, 2))
