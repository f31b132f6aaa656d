"""The tensors that a detector takes from a weight file of a detector, or of a classifier."""

from collections.abc import Mapping, Sequence

import numpy as np

from vig_jax.errors import WeightsError
from vig_jax.models import Detector
from vig_jax.weights import mmdet, mmseg
from vig_jax.weights.dense import BACKBONE
from vig_jax.weights.fit import (
    StateDict,
    WeightFile,
    check_values,
    matched_outputs,
    resize_table,
)
from vig_jax.weights.fit_backbone import backbone_tensors, hint_of_sizes, with_present_backbone

_BOX_OUTPUTS = (mmdet.LOGITS, mmdet.DELTAS)
_NEW_WITH_CLASSIFIER = ("neck.", *mmdet.HEADS)


def tensors_for(
    file: WeightFile, model: Detector, class_names: Sequence[str]
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors of a file to take, prefixes of the names that are new, and notes.

    Args:
        file: of a detector or a classifier.
        model: the detector.
        class_names: of the data set, by class; empty if it names none.

    Raises:
        WeightsError: the file is that of a segmenter, or values are not finite.
    """
    if mmseg.is_segmenter(file.state_dict):
        raise WeightsError(
            "the weights are those of a segmenter (decode_head.*): start a detector from a "
            "classifier or a detector"
        )
    if mmdet.is_detector(file.state_dict):
        return _of_detector(file, model, class_names)
    tensors, notes = backbone_tensors(file, model)
    return tensors, _NEW_WITH_CLASSIFIER, (*notes, "neck and heads are new: they must be trained")


def sizes_of(state_dict: Mapping[str, np.ndarray]) -> dict[str, int | bool]:
    """Returns the sizes of a detector that its state dict shows.

    Returns:
        `num_classes`, `channels`, `box_channels` and `masks`, see `vig_jax.models.Detector`; those
        whose arrays are missing are left out.
    """
    rows = {
        "channels": "rpn_head.rpn_conv.weight",
        "box_channels": "roi_head.bbox_head.shared_fcs.0.weight",
    }
    found: dict[str, int | bool] = {
        name: len(state_dict[key]) for name, key in rows.items() if key in state_dict
    }
    if (key := f"{mmdet.LOGITS}weight") in state_dict:
        found["num_classes"] = len(state_dict[key]) - 1
    return {"masks": any(key.startswith(mmdet.MASKS) for key in state_dict)} | found


def hint(tensors: Mapping[str, np.ndarray], model_name: str, model: Detector) -> str:
    """Returns the sizes of the tensors that differ from the model's, as far as they show them."""
    sizes = sizes_of(tensors) if mmdet.is_detector(tensors) else {}
    backbone = {
        key.removeprefix(BACKBONE): value
        for key, value in tensors.items()
        if key.startswith(BACKBONE)
    }
    return hint_of_sizes(sizes, backbone, model_name, model)


def _of_detector(
    file: WeightFile, model: Detector, class_names: Sequence[str]
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors of a detector; see `tensors_for`."""
    tensors = with_present_backbone(file.state_dict)
    notes = []
    if not model.masks and any(key.startswith(mmdet.MASKS) for key in tensors):
        tensors = {k: v for k, v in tensors.items() if not k.startswith(mmdet.MASKS)}
        notes.append("the mask head is not used")
    new: tuple[str, ...] = ()
    if model.masks and not any(key.startswith(mmdet.MASKS) for key in tensors):
        new = (mmdet.MASKS,)
        notes.append("the file has no mask head: a new one must be trained")
    check_values(tensors)
    in_file = sizes_of(tensors).get("num_classes", model.num_classes)
    named = tuple(file.metadata.get("instance_names", file.class_names))
    outputs = matched_outputs(named, class_names, model.num_classes)
    if outputs:
        _take_outputs(tensors, outputs)
        notes.append("the outputs of the heads are matched to the data set's classes by name")
    elif outputs is not None or in_file != model.num_classes:
        prefixes = (*_BOX_OUTPUTS, mmdet.MASK_LOGITS)
        new = (*new, *prefixes)
        tensors = {k: v for k, v in tensors.items() if not k.startswith(prefixes)}
        why = (
            f"as the file's are for {in_file}"
            if in_file != model.num_classes
            else "as the data set has other classes"
        )
        notes.append(
            f"new last layers of the heads for {model.num_classes} classes, {why}: they must be "
            "trained"
        )
    notes += resize_table(tensors, f"{BACKBONE}pos_embed", model.pos_embed_grid)
    return tensors, new, tuple(notes)


def _take_outputs(tensors: StateDict, outputs: Sequence[int]) -> None:
    """Orders the outputs of the heads; the background stays the last one."""
    for key in list(tensors):
        rows = tensors[key]
        if key.startswith(mmdet.LOGITS):
            tensors[key] = rows[[*outputs, len(rows) - 1]]
        elif key.startswith(mmdet.DELTAS):
            by_class = rows.reshape(-1, 4, *rows.shape[1:])[list(outputs)]
            tensors[key] = by_class.reshape(-1, *rows.shape[1:])
        elif key.startswith(mmdet.MASK_LOGITS):
            tensors[key] = rows[list(outputs)]
