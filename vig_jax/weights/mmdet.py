"""Translates names and layouts of mmdetection's Mask R-CNN to ours and back, strictly.

Their state dict has `backbone.*` with the names of hustvl/ViG, `neck.*` (FPN), `rpn_head.*` and
`roi_head.*`. The simple pyramid of plain models has detectron2's names under `neck.`.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vig_jax.models import Detector
from vig_jax.weights.dense import DenseTables, Variables, deconv
from vig_jax.weights.table import CONV, LINEAR, POINT, SAME, Layout, Rules

HEADS = ("rpn_head.", "roi_head.")
LOGITS = "roi_head.bbox_head.fc_cls."
DELTAS = "roi_head.bbox_head.fc_reg."
MASKS = "roi_head.mask_head."
MASK_LOGITS = f"{MASKS}conv_logits."
_BINS = 7  # rows and columns that the box head reads


def _pooled_to_ours(x: np.ndarray) -> np.ndarray:
    """Returns [out, in * 7 * 7] as [7 * 7 * in, out]: channels are first there and last here."""
    if x.ndim != 2 or x.shape[1] % _BINS**2:
        raise ValueError(f"{x.shape} is not a linear map of {_BINS}x{_BINS} bins")
    return x.reshape(len(x), -1, _BINS, _BINS).transpose(2, 3, 1, 0).reshape(-1, len(x))


def _pooled_to_theirs(x: np.ndarray) -> np.ndarray:
    return x.reshape(_BINS, _BINS, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)


POOLED = Layout(_pooled_to_ours, _pooled_to_theirs)


def _layer(theirs: str, ours: str, layout: Layout) -> Rules:
    return (
        (f"{theirs}.weight", f"params/{ours}/kernel", layout),
        (f"{theirs}.bias", f"params/{ours}/bias", SAME),
    )


def _norm(theirs: str, ours: str) -> Rules:
    return (
        (f"{theirs}.weight", f"params/{ours}/scale", SAME),
        (f"{theirs}.bias", f"params/{ours}/bias", SAME),
    )


_BOX, _MASK = "roi_head/bbox_head", "roi_head/mask_head"
_NECK_AND_HEADS: Rules = (
    *_layer("neck.lateral_convs.{i}.conv", "neck/lateral_convs_{i}/conv", CONV),
    *_layer("neck.fpn_convs.{i}.conv", "neck/fpn_convs_{i}/conv", CONV),
    *deconv("neck.simfp_2.0", "neck/simfp_2_0"),
    *_norm("neck.simfp_2.1", "neck/simfp_2_1"),
    *deconv("neck.simfp_2.3", "neck/simfp_2_3"),
    *deconv("neck.simfp_3.0", "neck/simfp_3_0"),
    ("neck.simfp_{i}.{j}.weight", "params/neck/simfp_{i}_{j}/kernel", CONV),
    *_norm("neck.simfp_{i}.{j}.norm", "neck/simfp_{i}_{j}/norm"),
    *_layer("rpn_head.rpn_conv", "rpn_head/rpn_conv", CONV),
    *_layer("rpn_head.rpn_cls", "rpn_head/rpn_cls", POINT),
    *_layer("rpn_head.rpn_reg", "rpn_head/rpn_reg", POINT),
    *_layer("roi_head.bbox_head.shared_fcs.0", f"{_BOX}/shared_fcs_0", POOLED),
    *_layer("roi_head.bbox_head.shared_fcs.1", f"{_BOX}/shared_fcs_1", LINEAR),
    *_layer(LOGITS.rstrip("."), f"{_BOX}/fc_cls", LINEAR),
    *_layer(DELTAS.rstrip("."), f"{_BOX}/fc_reg", LINEAR),
    *_layer("roi_head.mask_head.convs.{i}.conv", f"{_MASK}/convs_{{i}}/conv", CONV),
    *deconv("roi_head.mask_head.upsample", f"{_MASK}/upsample"),
    *_layer(MASK_LOGITS.rstrip("."), f"{_MASK}/conv_logits", POINT),
)
TABLES = DenseTables.of(_NECK_AND_HEADS, "mmdetection")


def is_detector(names: Collection[str]) -> bool:
    """Returns whether a state dict with these names is that of a detector."""
    return any(name.startswith(HEADS) for name in names)


def to_variables(
    state_dict: Mapping[str, np.ndarray], model: Detector, new: Collection[str] = ()
) -> Variables:
    """Returns our variables for `model` from a state dict of mmdetection.

    Args:
        state_dict: their names to arrays, all of them.
        model: from `vig_jax.create_detector`.
        new: prefixes of names that the state dict lacks and the result leaves out.

    Returns:
        {"params": ...} for `model.apply`; dtypes are kept.

    Raises:
        WeightsError: lists the missing and unexpected names and the shapes that differ.
    """
    cure = "check the model name, num_classes, channels, box_channels, masks and img_size"
    return TABLES.to_variables(state_dict, model, new, cure=cure)


def from_variables(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns their state dict of a detector's variables, the inverse of `to_variables`.

    Raises:
        WeightsError: names the variables that mmdetection does not have.
    """
    return TABLES.from_variables(variables)
