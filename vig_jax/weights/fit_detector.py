"""Fits the tensors of a weight file to a detector: those of a detector, or of a classifier."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from vig_jax.errors import WeightsError
from vig_jax.models import Detector
from vig_jax.weights import mmdet, mmseg
from vig_jax.weights.dense import BACKBONE, Variables
from vig_jax.weights.fit import (
    StateDict,
    WeightFile,
    check_model_name,
    check_values,
    matched_outputs,
    resize_table,
    size_hint,
)
from vig_jax.weights.fit_segmenter import backbone_tensors, with_present_backbone

_BOX_OUTPUTS = (mmdet.LOGITS, mmdet.DELTAS)
_NEW_WITH_CLASSIFIER = ("neck.", *mmdet.HEADS)


def fit_detector(
    file: WeightFile, model_name: str, model: Detector, *, class_names: Sequence[str] = ()
) -> tuple[Variables, tuple[str, ...]]:
    """Returns the variables of a file for a detector, and how they differ from the file's.

    Of a classifier the backbone is taken. Of a detector everything is taken; the last layers are
    new if the classes are others. If the file and the data set name their classes, these layers are
    matched by name. The position embedding is resized if its grid differs.

    Args:
        file: from `vig_jax.weights.load.read_weight_file`.
        model_name: the backbone, one of `vig_jax.list_models()`.
        model: the detector.
        class_names: of the data set, by class; empty if it names none.

    Returns:
        Variables for `model.apply` without those that are new, and notes for the user.

    Raises:
        WeightsError: names or shapes do not fit the model, or values are not finite.
    """
    check_model_name(file, model_name)
    if mmseg.is_segmenter(file.state_dict):
        raise WeightsError(
            "the weights are those of a segmenter (decode_head.*): start a detector from a "
            "classifier or a detector"
        )
    new: tuple[str, ...]
    if mmdet.is_detector(file.state_dict):
        tensors, new, notes = _of_detector(file, model, class_names)
    else:
        tensors, notes = backbone_tensors(file, model)
        new, notes = _NEW_WITH_CLASSIFIER, (*notes, "neck and heads are new: they must be trained")
    try:
        variables = mmdet.to_variables(tensors, model, new)
    except WeightsError as error:
        raise WeightsError(f"{error}{_hint(tensors, model_name, model)}") from error
    copies = jax.tree.map(lambda x: np.array(x, order="C"), variables)  # no views of the whole file
    return copies, notes


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


def _of_detector(
    file: WeightFile, model: Detector, class_names: Sequence[str]
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors to take, prefixes of the names that are left out, and notes."""
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


def _hint(state_dict: Mapping[str, np.ndarray], model_name: str, model: Detector) -> str:
    """Returns the sizes of the state dict that differ from the model's, as far as it shows them."""
    sizes = sizes_of(state_dict).items() if mmdet.is_detector(state_dict) else ()
    heads = [f"{name}={value}" for name, value in sizes if getattr(model, name) != value]
    backbone = {
        key.removeprefix(BACKBONE): value
        for key, value in state_dict.items()
        if key.startswith(BACKBONE)
    }
    about_heads = f". The file's heads have {', '.join(heads)}" if heads else ""
    return about_heads + size_hint(backbone, model_name)
