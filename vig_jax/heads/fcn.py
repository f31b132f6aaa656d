"""FCNHead: the auxiliary head of semantic segmentation."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.heads.classification import PixelClassifier
from vig_jax.heads.upernet import channel_dropout
from vig_jax.layers.conv_module import ConvModule
from vig_jax.layers.linear import Dtype


class FCNHead(nn.Module):
    """Logits from one map: a 3x3 `ConvModule`, dropout of channels, a linear map.

    Source: "Fully Convolutional Networks for Semantic Segmentation" (CVPR 2015); mmsegmentation
    `models/decode_heads/fcn_head.py` with one convolution.

    Attributes:
        num_classes, dropout, dtype, param_dtype: see `UPerHead`.
        channels: width of the head.
    """

    num_classes: int
    channels: int = 256
    dropout: float = 0.1
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        self.convs = [ConvModule(self.channels, 3, self.dtype, self.param_dtype)]
        self.channel_dropout = channel_dropout(self.dropout)
        self.conv_seg = PixelClassifier(self.num_classes, self.param_dtype)

    def __call__(self, x: Float[Array, "B h w D"], train: bool = False) -> Float[Array, "B h w K"]:
        """Returns logits at the size of the map; see `UPerHead`."""
        for conv in self.convs:
            x = conv(x, train)
        return self.conv_seg(self.channel_dropout(x, deterministic=not train))
