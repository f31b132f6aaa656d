"""Names and layouts of mmdetection's Mask R-CNN.

Their state dict has `backbone.*` with the names of hustvl/ViG, `neck.*` (FPN), `rpn_head.*` and
`roi_head.*`. The simple pyramid of plain models has detectron2's names under `neck.`.
"""

from vig_jax.weights.dense import BACKBONE, DenseTables, deconv
from vig_jax.weights.detector_names import POOLED, DetectorNames, layer
from vig_jax.weights.table import CONV, LINEAR, POINT, SAME, Rules


def _norm(theirs: str, ours: str) -> Rules:
    return (
        (f"{theirs}.weight", f"params/{ours}/scale", SAME),
        (f"{theirs}.bias", f"params/{ours}/bias", SAME),
    )


_BOX, _MASK = "roi_head/bbox_head", "roi_head/mask_head"
_NECK_AND_HEADS: Rules = (
    *layer("neck.lateral_convs.{i}.conv", "neck/lateral_convs_{i}/conv", CONV),
    *layer("neck.fpn_convs.{i}.conv", "neck/fpn_convs_{i}/conv", CONV),
    *deconv("neck.simfp_2.0", "neck/simfp_2_0"),
    *_norm("neck.simfp_2.1", "neck/simfp_2_1"),
    *deconv("neck.simfp_2.3", "neck/simfp_2_3"),
    *deconv("neck.simfp_3.0", "neck/simfp_3_0"),
    ("neck.simfp_{i}.{j}.weight", "params/neck/simfp_{i}_{j}/kernel", CONV),
    *_norm("neck.simfp_{i}.{j}.norm", "neck/simfp_{i}_{j}/norm"),
    *layer("rpn_head.rpn_conv", "rpn_head/rpn_conv", CONV),
    *layer("rpn_head.rpn_cls", "rpn_head/rpn_cls", POINT),
    *layer("rpn_head.rpn_reg", "rpn_head/rpn_reg", POINT),
    *layer("roi_head.bbox_head.shared_fcs.0", f"{_BOX}/shared_fcs_0", POOLED),
    *layer("roi_head.bbox_head.shared_fcs.1", f"{_BOX}/shared_fcs_1", LINEAR),
    *layer("roi_head.bbox_head.fc_cls", f"{_BOX}/fc_cls", LINEAR),
    *layer("roi_head.bbox_head.fc_reg", f"{_BOX}/fc_reg", LINEAR),
    *layer("roi_head.mask_head.convs.{i}.conv", f"{_MASK}/convs_{{i}}/conv", CONV),
    *deconv("roi_head.mask_head.upsample", f"{_MASK}/upsample"),
    *layer("roi_head.mask_head.conv_logits", f"{_MASK}/conv_logits", POINT),
)
NAMES = DetectorNames(
    tables=DenseTables.of(_NECK_AND_HEADS, "mmdetection"),
    heads=("rpn_head.", "roi_head."),
    backbone=BACKBONE,
    rpn_conv="rpn_head.rpn_conv.weight",
    first_layer="roi_head.bbox_head.shared_fcs.0.weight",
    logits="roi_head.bbox_head.fc_cls.",
    deltas="roi_head.bbox_head.fc_reg.",
    masks="roi_head.mask_head.",
    mask_logits="roi_head.mask_head.conv_logits.",
)
