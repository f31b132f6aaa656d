"""Fits the tensors of a weight file to a segmenter: those of a segmenter, or of a classifier."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from vig_jax.errors import WeightsError
from vig_jax.models import Detector, Segmenter, ViG
from vig_jax.weights import mmseg, upstream
from vig_jax.weights.dense import BACKBONE, Variables
from vig_jax.weights.fit import (
    StateDict,
    WeightFile,
    check_model_name,
    check_values,
    matched_outputs,
    resize_table,
    size_hint,
    with_present_names,
)

_CLASSIFIER = ("head.", "classifier.head.")
_FINAL_NORM = ("norm.", "classifier.norm.")
_NEW_WITH_CLASSIFIER = ("neck.", *mmseg.HEADS)


def fit_segmenter(
    file: WeightFile, model_name: str, model: Segmenter, *, class_names: Sequence[str] = ()
) -> tuple[Variables, tuple[str, ...]]:
    """Returns the variables of a file for a segmenter, and how they differ from the file's.

    Of a classifier the backbone is taken. Of a segmenter everything is taken, running statistics
    included; the layers `conv_seg` are new if the classes are others. If the file and the data set
    name their classes, these layers are matched by name. The position embedding is resized if its
    grid differs.

    Args:
        file: from `vig_jax.weights.load.read_weight_file`.
        model_name: the backbone, one of `vig_jax.list_models()`.
        model: the segmenter.
        class_names: of the data set, by class; empty if it names none.

    Returns:
        Variables for `model.apply` without those that are new, and notes for the user.

    Raises:
        WeightsError: names or shapes do not fit the model, or values are not finite.
    """
    check_model_name(file, model_name)
    if mmseg.is_segmenter(file.state_dict):
        tensors, new, notes = _of_segmenter(file, model, class_names)
    else:
        tensors, new, notes = _of_classifier(file, model)
    try:
        variables = mmseg.to_variables(tensors, model, new)
    except WeightsError as error:
        raise WeightsError(f"{error}{_hint(tensors, model_name, model)}") from error
    copies = jax.tree.map(lambda x: np.array(x, order="C"), variables)  # no views of the whole file
    return copies, notes


def completed(variables: Variables, model: Segmenter | Detector, *, seed: int) -> Variables:
    """Returns the variables with random ones, drawn from the seed, for those that are left out.

    Leaves are NumPy arrays.
    """
    side = upstream.traced_side(model)
    given = traverse_util.flatten_dict(variables, sep="/")
    missing = [path for path in upstream.variable_shapes(model) if path not in given]

    # Neither the forward pass nor the other draws are part of the compiled program.
    @jax.jit
    def draw(key: jax.Array) -> dict[str, jax.Array]:
        fresh = model.init(key, jnp.zeros((1, side, side, 3)))
        flat = traverse_util.flatten_dict(dict(fresh), sep="/")
        return {path: flat[path] for path in missing}

    new = jax.tree.map(np.asarray, draw(jax.random.key(seed))) if missing else {}
    return traverse_util.unflatten_dict(given | new, sep="/")


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


def _hint(state_dict: Mapping[str, np.ndarray], model_name: str, model: Segmenter) -> str:
    """Returns the sizes of the state dict that differ from the model's, as far as it shows them."""
    sizes = sizes_of(state_dict).items() if mmseg.is_segmenter(state_dict) else ()
    heads = [
        f"{name}={value}"
        for name, value in sizes
        if name != "num_classes" and getattr(model, name) != value
    ]
    backbone = {
        key.removeprefix(BACKBONE): value
        for key, value in state_dict.items()
        if not key.startswith(mmseg.HEADS)
    }
    about_heads = f". The file's heads have {', '.join(heads)}" if heads else ""
    return about_heads + size_hint(backbone, model_name)


def _of_segmenter(
    file: WeightFile, model: Segmenter, class_names: Sequence[str]
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors to take, prefixes of the names that are left out, and notes."""
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
    notes += resize_table(tensors, f"{BACKBONE}pos_embed", model.pos_embed_grid)
    return tensors, tuple(new), tuple(notes)


def _of_classifier(
    file: WeightFile, model: Segmenter
) -> tuple[StateDict, tuple[str, ...], tuple[str, ...]]:
    """Returns the tensors of the backbone; see `_of_segmenter`."""
    keeps_norm = isinstance(model.backbone, ViG) and model.norm_last
    tensors, notes = backbone_tensors(file, model, keeps_norm=keeps_norm)
    new = "neck and heads are" if isinstance(model.backbone, ViG) else "the heads are"
    return tensors, _NEW_WITH_CLASSIFIER, (*notes, f"{new} new: they must be trained")


def backbone_tensors(
    file: WeightFile, model: Segmenter | Detector, *, keeps_norm: bool = False
) -> tuple[StateDict, tuple[str, ...]]:
    """Returns the tensors of a classifier's backbone for a model on it, and notes for the user.

    Args:
        file: of a classifier.
        model: with a backbone of the classifier's sizes.
        keeps_norm: whether the model has the last norm of a plain classifier.

    Raises:
        WeightsError: values are not finite.
    """
    given = with_present_names(file.state_dict)
    unused = _CLASSIFIER if keeps_norm else (*_CLASSIFIER, *_FINAL_NORM)
    tensors = {key: value for key, value in given.items() if not key.startswith(unused)}
    check_values(tensors)
    notes = ["the backbone is taken, the classifier's head is not"]
    if any(key.startswith(_FINAL_NORM) and key not in tensors for key in given):
        notes = ["the backbone is taken, the classifier's head and last norm are not"]
    notes += resize_table(tensors, "pos_embed", model.pos_embed_grid)
    shapes = upstream.variable_shapes(model)
    tensors |= upstream.new_out_norms(tensors, shapes, "params/backbone/")
    return {BACKBONE + key: value for key, value in tensors.items()}, tuple(notes)


def with_present_backbone(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    """Returns the state dict with the backbone under upstream's present names."""
    backbone = {
        k.removeprefix(BACKBONE): v for k, v in state_dict.items() if k.startswith(BACKBONE)
    }
    rest = {key: value for key, value in state_dict.items() if not key.startswith(BACKBONE)}
    return {BACKBONE + key: value for key, value in with_present_names(backbone).items()} | rest
