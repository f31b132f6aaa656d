"""The tensors that a segmenter takes from a weight file of a segmenter, or of a classifier."""

from collections.abc import Mapping, Sequence

import numpy as np

from vig_jax.models import Segmenter, ViG
from vig_jax.weights import mmseg
from vig_jax.weights.dense import BACKBONE
from vig_jax.weights.fit import WeightFile, check_values, matched_outputs
from vig_jax.weights.fit_backbone import backbone_tensors, hint_of_sizes, with_present_backbone
from vig_jax.weights.fit_inputs import StateDict, fit_inputs

_NEW_WITH_CLASSIFIER = ("neck.", *mmseg.HEADS)


def tensors_for(
    file: WeightFile, model: Segmenter, class_names: Sequence[str]
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors of a file to take, prefixes of the names that are new, and notes.

    Args:
        file: of a segmenter or a classifier.
        model: the segmenter.
        class_names: of the data set, by class; empty if it names none.

    Raises:
        WeightsError: values are not finite.
    """
    if mmseg.is_segmenter(file.state_dict):
        return _of_segmenter(file, model, class_names)
    keeps_norm = isinstance(model.backbone, ViG) and model.norm_last
    tensors, notes = backbone_tensors(file, model, keeps_norm=keeps_norm)
    new = "neck and heads are" if isinstance(model.backbone, ViG) else "the heads are"
    return tensors, _NEW_WITH_CLASSIFIER, (*notes, f"{new} new: they must be trained")


def sizes_of(state_dict: Mapping[str, np.ndarray]) -> dict[str, int | bool]:
    """Returns the sizes of a segmenter that its state dict shows.

    Returns:
        `num_classes`, `channels`, `aux_channels` and `norm_last`, see `vig_jax.models.Segmenter`;
        those whose arrays are missing are left out.
    """
    widths = {
        "num_classes": "decode_head.conv_seg.weight",
        "channels": "decode_head.fpn_bottleneck.conv.weight",
        "aux_channels": "auxiliary_head.convs.0.conv.weight",
    }
    found: dict[str, int | bool] = {
        name: state_dict[key].shape[0]
        for name, key in widths.items()
        if key in state_dict and state_dict[key].ndim == 4
    }
    return {"aux_channels": 0, "norm_last": "backbone.norm.weight" in state_dict} | found


def hint(tensors: Mapping[str, np.ndarray], model_name: str, model: Segmenter) -> str:
    """Returns the sizes of the tensors that differ from the model's, as far as they show them."""
    sizes = sizes_of(tensors) if mmseg.is_segmenter(tensors) else {}
    sizes.pop("num_classes", None)
    backbone = {
        key.removeprefix(BACKBONE): value
        for key, value in tensors.items()
        if not key.startswith(mmseg.HEADS)
    }
    return hint_of_sizes(sizes, backbone, model_name, model)


def _of_segmenter(
    file: WeightFile, model: Segmenter, class_names: Sequence[str]
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors of a segmenter; see `tensors_for`."""
    tensors = with_present_backbone(file.state_dict)
    notes = []
    if not model.aux_channels and any(key.startswith(mmseg.AUXILIARY) for key in tensors):
        tensors = {k: v for k, v in tensors.items() if not k.startswith(mmseg.AUXILIARY)}
        notes.append("the auxiliary head is not used")
    check_values({k: v for k, v in tensors.items() if not mmseg.is_counter(k, tensors)})
    in_file = sizes_of(tensors).get("num_classes", model.num_classes)
    outputs = matched_outputs(file.class_names, class_names, model.num_classes)
    heads = [key for key in tensors if key.startswith(mmseg.HEADS) and ".conv_seg." in key]
    new: list[str] = []
    if outputs:
        for key in heads:
            tensors[key] = tensors[key][outputs]
        notes.append("the outputs of conv_seg are matched to the data set's classes by name")
    elif outputs is not None or in_file != model.num_classes:
        new = [f"{head}conv_seg." for head in mmseg.HEADS]
        tensors = {key: value for key, value in tensors.items() if key not in heads}
        why = (
            f"as the file's is for {in_file}"
            if in_file != model.num_classes
            else "as the data set has other classes"
        )
        notes.append(f"a new conv_seg for {model.num_classes} classes, {why}: it must be trained")
    notes += fit_inputs(tensors, model, BACKBONE)
    return tensors, tuple(new), tuple(notes)
