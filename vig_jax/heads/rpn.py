"""RPNHead: the region proposal network's predictions."""

from collections.abc import Sequence
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vig_jax.heads.classification import wide_dense
from vig_jax.layers.conv import Conv
from vig_jax.layers.linear import Dtype

small_normal = nn.initializers.normal(0.01)


class AnchorPredictions(NamedTuple):
    """Predictions for the anchors of one level; see `vig_jax.ops.anchors`.

    Attributes:
        logits: whether the anchor is an object.
        deltas: dx, dy, dw, dh; see `vig_jax.ops.boxes.decode`.
    """

    logits: Float[Array, "B N"]
    deltas: Float[Array, "B N 4"]


class RPNHead(nn.Module):
    """Logits and deltas of anchors: a 3x3 convolution, ReLU, two linear maps.

    All levels share the parameters. Source: "Faster R-CNN" (NeurIPS 2015); mmdet
    `models/dense_heads/rpn_head.py`, whose names the parameters have.

    Attributes:
        anchors: number of anchors at a position.
        channels: width of the hidden map.
        dtype: dtype of the convolution; None promotes maps and kernel. The results are float32 or
            wider.
        param_dtype: dtype of the parameters.
    """

    anchors: int = 3
    channels: int = 256
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def setup(self) -> None:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        self.rpn_conv = Conv(self.channels, 3, small_normal, **dtypes)
        self.rpn_cls = wide_dense(self.anchors, small_normal, self.param_dtype)
        self.rpn_reg = wide_dense(4 * self.anchors, small_normal, self.param_dtype)

    def __call__(self, maps: Sequence[Float[Array, "B _ _ C"]]) -> tuple[AnchorPredictions, ...]:
        """Returns the predictions of each level, in the order of `AnchorGenerator`."""
        return tuple(self._level(x) for x in maps)

    def _level(self, x: Array) -> AnchorPredictions:
        hidden = nn.relu(self.rpn_conv(x))
        logits, deltas = self.rpn_cls(hidden), self.rpn_reg(hidden)
        return AnchorPredictions(logits.reshape(len(x), -1), deltas.reshape(len(x), -1, 4))
