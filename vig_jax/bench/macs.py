"""Counts the multiply-accumulates of a forward pass from a model's sizes."""

import dataclasses
from collections.abc import Sequence

from kernels_pallas.core.resize import Size
from vig_jax.heads.roi import DENSE_LAYERS, MASK_CONVS
from vig_jax.heads.upernet import LEVELS, POOL_SCALES
from vig_jax.layers.gated_linear_attention import GATE_RANK
from vig_jax.layers.mlp import swiglu_hidden
from vig_jax.layers.resize import direct_macs, is_separated, separated_macs
from vig_jax.models import Detector, Segmenter, ViG, ViGH
from vig_jax.models.detector import map_sizes


@dataclasses.dataclass(frozen=True)
class Macs:
    """Multiply-accumulates for one image, without norms, activations and blends.

    Attributes:
        linear: linear maps: projections of the mixers, both products of the MLPs, the head.
        conv: the stem, the downsampling between stages, the depthwise convolutions.
        gla: the recurrence by its definition, token by token in both directions, with three
            multiplications for each of the K x V elements of a state: the decay, k v^T, and the
            product with the query. (An implementation by chunks does different work.)
        head: neck and decode head of a segmenter by their definition, in which a convolution of
            resized maps is one of their concatenation; its auxiliary head is not counted. Neck
            and heads of a detector, for all its proposals and detections.
        saved: how much less of `head` is computed, because `resize_conv` multiplies small maps
            before it resizes them.
    """

    linear: int
    conv: int
    gla: int
    head: int = 0
    saved: int = 0

    @property
    def total(self) -> int:
        """The sum of the parts by their definition, `saved` included."""
        return self.linear + self.conv + self.gla + self.head

    def __add__(self, other: "Macs") -> "Macs":
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Macs(*(a + b for a, b in pairs))


def count_macs(model: ViG | ViGH | Segmenter | Detector, height: int, width: int) -> Macs:
    """Counts the multiply-accumulates of the outputs for one image of `height` x `width` pixels.

    Not counted: resizing, of the position embedding (once per batch) and of maps, pooling, and
    what is done with boxes.
    """
    if isinstance(model, Detector):
        return count_macs(model.backbone, height, width) + _detection(model, height, width)
    if isinstance(model, Segmenter):
        return count_macs(model.backbone, height, width) + _segmentation(model, height, width)
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


def _segmentation(model: Segmenter, height: int, width: int) -> Macs:
    """Counts neck and decode head."""
    backbone, C = model.backbone, model.channels
    macs = Macs(0, 0, 0)
    if isinstance(backbone, ViG):
        D = backbone.embed_dim
        _, h, w = _stem(D, backbone.patch_size, height, width)
        sizes: list[Size] = [(4 * h, 4 * w), (2 * h, 2 * w), (h, w), (h // 2, w // 2)]
        macs += Macs(0, 0, 0, head=6 * h * w * 4 * D * D)  # deconvolutions at 1, 4 and 1 h w
    else:
        _, h, w = _stem(backbone.embed_dims[0], 4, height, width)
        sizes = [(h, w)]
        for _ in range(LEVELS - 1):
            h, w = _conv_size(h, 3, 2), _conv_size(w, 3, 2)
            sizes.append((h, w))
    widths = [info.num_chs for info in model.feature_info]
    pooled = [(bins, bins) for bins in POOL_SCALES]
    macs += Macs(0, 0, 0, head=sum(h * w for h, w in pooled) * widths[-1] * C)
    macs += _resize_conv([sizes[-1], *pooled], [widths[-1], *[C] * len(pooled)], C)
    for (h, w), channels in zip(sizes[:-1], widths[:-1], strict=True):
        macs += Macs(0, 0, 0, head=h * w * channels * C + direct_macs((h, w), C, C))
    macs += _resize_conv(sizes, [C] * LEVELS, C)
    h, w = sizes[0]
    return macs + Macs(0, 0, 0, head=h * w * C * model.num_classes)


def _detection(model: Detector, height: int, width: int) -> Macs:
    """Counts neck and heads."""
    C, K, anchors = model.channels, model.num_classes, len(model.anchor_ratios)
    cells = [h * w for h, w in map_sizes((height, width))]
    made = cells[:-1]  # the coarsest map is a part of the one before
    if isinstance(model.backbone, ViG):
        D = model.backbone.embed_dim
        widths = [D // 4, D // 2, D, D]
        h, w = height // model.backbone.patch_size, width // model.backbone.patch_size
        deconvs = h * w * 4 * (D * D // 2 + 4 * (D // 2) * (D // 4) + D * D // 2)
    else:
        widths, deconvs = list(model.backbone.embed_dims), 0
    neck = sum(n * (D * C + 9 * C * C) for n, D in zip(made, widths, strict=True)) + deconvs
    rpn = sum(cells) * (9 * C * C + 5 * C * anchors)
    rows, columns = model.box_align.size
    dense = model.box_channels
    regions = rows * columns * C * dense + (DENSE_LAYERS - 1) * dense**2 + dense * (5 * K + 1)
    head = neck + rpn + model.proposals * regions
    if model.masks:
        rows, columns = model.mask_align.size
        positions = rows * columns
        mask = positions * (MASK_CONVS * 9 * C * C + 4 * C * C + 4 * C * K)
        head += model.detections * mask
    return Macs(0, 0, 0, head=head)


def _resize_conv(sources: Sequence[Size], channels: Sequence[int], features: int) -> Macs:
    """Counts a `resize_conv` of maps to the size of the first."""
    size = sources[0]
    maps = list(zip(sources, channels, strict=True))
    saved = sum(
        direct_macs(size, width, features) - separated_macs(source, size, width, features)
        for source, width in maps
        if is_separated(source, size, width, features)
    )
    return Macs(0, 0, 0, sum(direct_macs(size, width, features) for _, width in maps), saved)


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
