"""The tensors that a detector takes from a weight file of a detector, or of a classifier."""

from collections.abc import Mapping, Sequence

import numpy as np

from vig_jax.errors import WeightsError
from vig_jax.models import Detector, ViG
from vig_jax.text import preview_names
from vig_jax.weights import mmdet, mmseg
from vig_jax.weights.dense import BACKBONE
from vig_jax.weights.detector_names import DetectorNames
from vig_jax.weights.detectors import names_of
from vig_jax.weights.fit import (
    WeightFile,
    check_values,
    matched_outputs,
)
from vig_jax.weights.fit_backbone import backbone_tensors, hint_of_sizes, with_present_backbone
from vig_jax.weights.fit_inputs import StateDict, fit_inputs
from vig_jax.weights.table import translate

_NEW_WITH_CLASSIFIER = ("neck.", *mmdet.NAMES.heads)


def tensors_for(
    file: WeightFile, model: Detector, class_names: Sequence[str]
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors of a file to take, prefixes of the names that are new, and notes.

    Args:
        file: of a detector or a classifier.
        model: the detector.
        class_names: of the data set, by class; empty if it names none.

    Raises:
        WeightsError: the file is that of a segmenter or of a detector on another backbone, or
            values are not finite.
    """
    if mmseg.is_segmenter(file.state_dict):
        raise WeightsError(
            "the weights are those of a segmenter (decode_head.*): start a detector from a "
            "classifier or a detector"
        )
    if names := names_of(file.state_dict):
        return _of_detector(file, names, model, class_names)
    tensors, notes = backbone_tensors(file, model)
    return tensors, _NEW_WITH_CLASSIFIER, (*notes, "neck and heads are new: they must be trained")


def sizes_of(state_dict: Mapping[str, np.ndarray]) -> dict[str, int | bool]:
    """Returns the sizes of a detector that its state dict shows.

    Returns:
        `num_classes`, `channels`, `box_channels` and `masks`, see `vig_jax.models.Detector`; those
        whose arrays are missing are left out.
    """
    names = names_of(state_dict)
    if names is None:
        return {}
    rows = {"channels": names.rpn_conv, "box_channels": names.first_layer}
    found: dict[str, int | bool] = {
        name: len(state_dict[key]) for name, key in rows.items() if key in state_dict
    }
    if (key := f"{names.logits}weight") in state_dict:
        found["num_classes"] = len(state_dict[key]) - 1
    return {"masks": any(key.startswith(names.masks) for key in state_dict)} | found


def hint(tensors: Mapping[str, np.ndarray], model_name: str, model: Detector) -> str:
    """Returns the sizes of the tensors that differ from the model's, as far as they show them."""
    names = names_of(tensors)
    prefix = BACKBONE if names is None else names.backbone
    backbone = {
        key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
    }
    return hint_of_sizes(sizes_of(tensors), backbone, model_name, model)


def _of_detector(
    file: WeightFile, names: DetectorNames, model: Detector, class_names: Sequence[str]
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors of a detector; see `tensors_for`."""
    tensors = with_present_backbone(file.state_dict, names.backbone)
    notes = []
    new = _without_backbone(tensors, names, model)
    if new:
        notes.append("the file has heads alone: the backbone is new and must be trained")
    if not model.masks and any(key.startswith(names.masks) for key in tensors):
        tensors = {k: v for k, v in tensors.items() if not k.startswith(names.masks)}
        notes.append("the mask head is not used")
    if model.masks and not any(key.startswith(names.masks) for key in tensors):
        new = (*new, names.masks)
        notes.append("the file has no mask head: a new one must be trained")
    check_values(tensors)
    in_file = sizes_of(tensors).get("num_classes", model.num_classes)
    in_file_names = tuple(file.metadata.get("instance_names", file.class_names))
    outputs = matched_outputs(in_file_names, class_names, model.num_classes)
    if outputs:
        _take_outputs(tensors, names, len(in_file_names), outputs)
        notes.append("the outputs of the heads are matched to the data set's classes by name")
    elif outputs is not None or in_file != model.num_classes:
        prefixes = (names.logits, names.deltas, names.mask_logits)
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
    notes += fit_inputs(tensors, model, names.backbone)
    return tensors, new, tuple(notes)


def _without_backbone(tensors: StateDict, names: DetectorNames, model: Detector) -> tuple[str, ...]:
    """Returns the prefix of the backbone if a file of torchvision has none, else nothing.

    Raises:
        WeightsError: torchvision's file has another backbone, or the model is plain.
    """
    if names.simple_pyramid:
        return ()
    if isinstance(model.backbone, ViG):
        raise WeightsError(
            "the weights have torchvision's names (roi_heads.*), and its FPN is not the neck of a "
            "plain model: take a hierarchical model, such as vig_h_t"
        )
    body = [key for key in tensors if key.startswith(names.backbone)]
    known = [key for key in body if translate(names.tables.hierarchical, key, forward=True)]
    if body and not known:
        raise WeightsError(
            f"the weights are those of a detector on another backbone ({preview_names(body)}): "
            f"remove the arrays {names.backbone}* from the file to begin with its heads alone"
        )
    return () if body else (names.backbone,)


def _take_outputs(
    tensors: StateDict, names: DetectorNames, classes: int, outputs: Sequence[int]
) -> None:
    """Orders the outputs of the heads; those of the background stay at their place.

    Arrays of another length stay as they are, so that the comparison of shapes reports them.

    Args:
        tensors: of a detector.
        names: of the tensors.
        classes: number of classes of the heads.
        outputs: the class to take for each class of the model.
    """
    first = int(names.background_first)
    objects = [*range(first), *(first + i for i in outputs)]
    for prefix, order, count, rows in (
        (names.logits, objects if first else [*objects, classes], classes + 1, 1),
        (names.deltas, objects, classes + first, 4),
        (names.mask_logits, objects, classes + first, 1),
    ):
        for key in (f"{prefix}weight", f"{prefix}bias"):
            x = tensors.get(key)
            if x is not None and x.shape[:1] == (count * rows,):
                by_class = x.reshape(count, rows, *x.shape[1:])[order]
                tensors[key] = by_class.reshape(len(order) * rows, *x.shape[1:])
