"""Counts the multiply-accumulates of a forward pass from a model's sizes."""

import dataclasses

from vig_jax.layers.gated_linear_attention import GATE_RANK
from vig_jax.layers.mlp import swiglu_hidden
from vig_jax.models import ViG, ViGH


@dataclasses.dataclass(frozen=True)
class Macs:
    """Multiply-accumulates for one image, without norms, activations and blends.

    Attributes:
        linear: linear maps: projections of the mixers, both products of the MLPs, the head.
        conv: the stem, the downsampling between stages, the depthwise convolutions.
        gla: the recurrence by its definition, token by token in both directions, with three
            multiplications for each of the K x V elements of a state: the decay, k v^T, and the
            product with the query. (An implementation by chunks does different work.)
    """

    linear: int
    conv: int
    gla: int

    @property
    def total(self) -> int:
        """The sum of the parts."""
        return self.linear + self.conv + self.gla

    def __add__(self, other: "Macs") -> "Macs":
        return Macs(self.linear + other.linear, self.conv + other.conv, self.gla + other.gla)


def count_macs(model: ViG | ViGH, height: int, width: int) -> Macs:
    """Counts the multiply-accumulates of the logits of one image of `height` x `width` pixels.

    Resizing the position embedding, once per batch, is not counted.
    """
    if isinstance(model, ViG):
        macs, h, w = _stem(model.embed_dim, model.patch_size, height, width)
        hidden = swiglu_hidden(model.embed_dim, multiple_of=256)
        macs += _blocks(model.depth, model.embed_dim, model.num_heads, hidden, h * w)
        return macs + Macs(model.embed_dim * model.num_classes, 0, 0)
    macs, h, w = _stem(model.embed_dims[0], 4, height, width)
    stages = zip(model.embed_dims, model.depths, model.num_heads, strict=True)
    before = None
    for dim, depth, heads in stages:
        if before is not None:
            h, w = _conv_size(h, 3, 2), _conv_size(w, 3, 2)
            macs += Macs(0, h * w * 9 * before * dim, 0)
        macs += _blocks(depth, dim, heads, swiglu_hidden(dim, multiple_of=32), h * w)
        before = dim
    return macs + Macs(model.embed_dims[-1] * model.num_classes, 0, 0)


def _stem(dim: int, patch_size: int, height: int, width: int) -> tuple[Macs, int, int]:
    """Counts the two convolutions of the stem; returns also the rows and columns after them."""
    stride = patch_size // 2
    h, w = (_conv_size(side, stride + 1, stride) for side in (height, width))
    first = h * w * (stride + 1) ** 2 * 3 * (dim // 2)
    h, w = _conv_size(h, 3, 2), _conv_size(w, 3, 2)
    return Macs(0, first + h * w * 9 * (dim // 2) * dim, 0), h, w


def _conv_size(side: int, kernel: int, stride: int) -> int:
    """Returns the number of outputs along one axis of a convolution with padding 1."""
    return (side + 2 - kernel) // stride + 1


def _blocks(depth: int, dim: int, heads: int, hidden: int, tokens: int) -> Macs:
    """Counts `depth` blocks at one resolution."""
    key_value_gate_out = 2 * dim * dim + dim * dim + dim * dim  # q, k, v; blending gate; output
    decays = dim * GATE_RANK + GATE_RANK * dim
    mlp = dim * 2 * hidden + hidden * dim
    state = heads * (dim // 2 // heads) * (dim // heads)
    return Macs(
        linear=depth * tokens * (key_value_gate_out + decays + mlp),
        conv=depth * tokens * 9 * dim,
        gla=depth * tokens * 2 * 3 * state,
    )
