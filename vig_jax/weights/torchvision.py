"""Names and layouts of `torchvision.models.detection.MaskRCNN`.

Their state dict has `backbone.body.*`, here with the names of hustvl/ViG, `backbone.fpn.*`,
`rpn.head.*` and `roi_heads.*`. The background is class 0 there: it has the first logit, and deltas
and a mask that nothing reads. Here it has the last logit alone. Deltas have the same order and
standard deviations, and anchors the same order. The names of the first version of their modules are
read too; torchvision's published files have them.
"""

import numpy as np

from vig_jax.weights.dense import DenseTables, deconv
from vig_jax.weights.detector_names import POOLED, DetectorNames, layer
from vig_jax.weights.table import CONV, LINEAR, POINT, SAME, Layout, Rules

BODY = "backbone.body."
_DELTAS = 4  # rows of a class in the layer of deltas


def _background_last(layout: Layout) -> Layout:
    """Returns the layout of rows of classes; the first row there is the last output here."""
    return Layout(
        lambda x: layout.to_ours(np.roll(x, -1, axis=0)),
        lambda x: np.roll(layout.to_theirs(x), 1, axis=0),
    )


def _without_background(layout: Layout, rows: int) -> Layout:
    """Returns the layout of rows of classes, of which the first `rows` are the background's.

    They are left out here, and 0 there.
    """

    def to_ours(x: np.ndarray) -> np.ndarray:
        if not x.ndim:
            raise ValueError("a number has no rows")
        return layout.to_ours(x[rows:])

    def to_theirs(x: np.ndarray) -> np.ndarray:
        kept = layout.to_theirs(x)
        return np.concatenate([np.zeros_like(kept, shape=(rows, *kept.shape[1:])), kept])

    return Layout(to_ours, to_theirs)


def _last_layer(theirs: str, ours: str, kernel: Layout, rows: int) -> Rules:
    return layer(theirs, ours, _without_background(kernel, rows), _without_background(SAME, rows))


_BOX, _MASK = "roi_head/bbox_head", "roi_head/mask_head"
_THEIR_MASK = "roi_heads.mask_head"
_NECK_AND_HEADS: Rules = (
    *layer("backbone.fpn.inner_blocks.{i}.0", "neck/lateral_convs_{i}/conv", CONV),
    *layer("backbone.fpn.layer_blocks.{i}.0", "neck/fpn_convs_{i}/conv", CONV),
    *layer("rpn.head.conv.0.0", "rpn_head/rpn_conv", CONV),
    *layer("rpn.head.cls_logits", "rpn_head/rpn_cls", POINT),
    *layer("rpn.head.bbox_pred", "rpn_head/rpn_reg", POINT),
    *layer("roi_heads.box_head.fc6", f"{_BOX}/shared_fcs_0", POOLED),
    *layer("roi_heads.box_head.fc7", f"{_BOX}/shared_fcs_1", LINEAR),
    *layer(
        "roi_heads.box_predictor.cls_score",
        f"{_BOX}/fc_cls",
        _background_last(LINEAR),
        _background_last(SAME),
    ),
    *_last_layer("roi_heads.box_predictor.bbox_pred", f"{_BOX}/fc_reg", LINEAR, _DELTAS),
    *layer(f"{_THEIR_MASK}.{{i}}.0", f"{_MASK}/convs_{{i}}/conv", CONV),
    *deconv("roi_heads.mask_predictor.conv5_mask", f"{_MASK}/upsample"),
    *_last_layer("roi_heads.mask_predictor.mask_fcn_logits", f"{_MASK}/conv_logits", POINT, 1),
    # The first version of their modules:
    *layer("backbone.fpn.inner_blocks.{i}", "neck/lateral_convs_{i}/conv", CONV),
    *layer("backbone.fpn.layer_blocks.{i}", "neck/fpn_convs_{i}/conv", CONV),
    *layer("rpn.head.conv", "rpn_head/rpn_conv", CONV),
    *layer(f"{_THEIR_MASK}.mask_fcn1", f"{_MASK}/convs_0/conv", CONV),
    *layer(f"{_THEIR_MASK}.mask_fcn2", f"{_MASK}/convs_1/conv", CONV),
    *layer(f"{_THEIR_MASK}.mask_fcn3", f"{_MASK}/convs_2/conv", CONV),
    *layer(f"{_THEIR_MASK}.mask_fcn4", f"{_MASK}/convs_3/conv", CONV),
)
NAMES = DetectorNames(
    tables=DenseTables.of(_NECK_AND_HEADS, "torchvision", BODY),
    heads=("rpn.head.", "roi_heads."),
    backbone=BODY,
    rpn_conv="rpn.head.conv.0.0.weight",
    first_layer="roi_heads.box_head.fc6.weight",
    logits="roi_heads.box_predictor.cls_score.",
    deltas="roi_heads.box_predictor.bbox_pred.",
    masks="roi_heads.mask_",
    mask_logits="roi_heads.mask_predictor.mask_fcn_logits.",
    background_first=True,
    simple_pyramid=False,
)
