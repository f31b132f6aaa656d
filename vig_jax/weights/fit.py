"""Fits the tensors of a weight file to a model: old names, a new head, another token grid."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vig_jax.config import ModelConfig
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.layers.linear import normal_002
from vig_jax.models import Backbone, create_model, list_models
from vig_jax.weights import mmseg, upstream
from vig_jax.weights.detectors import is_detector
from vig_jax.weights.finite import check_finite
from vig_jax.weights.fit_inputs import StateDict, fit_inputs

# Prefixes of the hierarchical models' parameters in files of earlier upstream code, and the present
# ones. Upstream's vig_h.py renames them too (`_load_from_state_dict`).
_OLD_NAMES = (
    (r"patch_embed\.proj\.", "patch_embed.0."),
    (r"patch_embed\.norm\.", "patch_embed.2."),
    (r"(layers\.\d+\.blocks\.\d+)\.ln_1\.", r"\1.norm."),
    (r"(layers\.\d+\.blocks\.\d+)\.self_attention\.", r"\1.op."),
    (r"norm\.", "classifier.norm."),
    (r"head\.", "classifier.head."),
)
_HEADS = (("head.weight", "head.bias"), ("classifier.head.weight", "classifier.head.bias"))
# Settings of config.model that do not change the shapes of parameters, or are passed separately.
_NO_SIZES = {
    "name",
    "num_classes",
    "drop_path_rate",
    "remat",
    "dtype",
    "gla_implementation",
    "merge_scale",
}


@dataclasses.dataclass(frozen=True)
class WeightFile:
    """One set of weights of a file, under upstream's names.

    Attributes:
        state_dict: name to array; the arrays may be views.
        section: the key of these weights in the file; "" if there is none.
        averaged: True for EMA weights, False for raw ones, None if the file does not say.
        others: the other keys of the file.
        notes: warnings for the user.
        class_names: of the head's outputs, if the file names them.
        model_name: of the model, if the file names it, or is a published one of upstream.
        metadata: of the data set that the model was trained on, as far as the file has it.
        config: settings that the model was trained with, by section, as far as the file has them.
    """

    state_dict: StateDict
    section: str = ""
    averaged: bool | None = None
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()
    model_name: str = ""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights that fit a model.

    Attributes:
        params: nested dictionary of NumPy arrays.
        num_classes: width of the head; 0 if there is none.
        notes: how they differ from those of the file.
    """

    params: dict[str, Any]
    num_classes: int
    notes: tuple[str, ...] = ()


def fit(
    state_dict: Mapping[str, np.ndarray],
    model_name: str,
    *,
    num_classes: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    seed: int = 0,
    outputs: Sequence[int] | None = None,
) -> Weights:
    """Returns the parameters of a model from a state dict.

    The head is new if the number of classes differs or the state dict has no head, and the position
    embedding is resized if its grid differs.

    Args:
        state_dict: present or earlier names of upstream; 1x1 convolutions may have two or four
            dimensions.
        model_name: one of `vig_jax.list_models()`.
        num_classes: width of the head; 0 for no head; None for that of the state dict, which may
            have none.
        overrides: for `create_model`.
        seed: of a new head.
        outputs: the output of the state dict's head to take for each output of the model; empty
            for a new head; None for the default.

    Raises:
        WeightsError: lists the missing and unexpected names and the shapes that differ.
    """
    if mmseg.is_segmenter(state_dict):
        raise WeightsError(
            "the weights are those of a segmenter (decode_head.*), not of a classifier: use "
            "vig_jax.create_segmenter, or config.task.name='segmentation' in a run"
        )
    if is_detector(state_dict):
        raise WeightsError(
            "the weights are those of a detector (roi_head*), not of a classifier: use "
            "vig_jax.create_detector, or config.task.name='detection' in a run"
        )
    tensors = with_present_names(state_dict)
    check_values(tensors)
    head = _head(tensors)
    headless = bool(tensors) and not any(
        key.startswith(("head.", "classifier.head.")) for key in tensors
    )
    in_file = tensors[head[1]].size if head else 0 if headless else None
    classes = in_file if num_classes is None else num_classes
    given = {} if classes is None else {"num_classes": classes}
    model = create_model(model_name, **given, **(overrides or {}))
    notes = []
    if headless and model.num_classes:
        notes.append(_add_head(tensors, model, seed))
    if head and outputs:
        for key in head:
            tensors[key] = tensors[key][list(outputs)]
        notes.append("the head's outputs are matched to the data set's classes by name")
    elif head and outputs is not None:
        _replace_head(tensors, head, model.num_classes, seed)
        notes.append("a new head, as the data set has other classes: it must be trained")
    elif head and in_file != model.num_classes:
        notes.append(_replace_head(tensors, head, model.num_classes, seed))
    notes += fit_inputs(tensors, model)
    try:
        params = upstream.to_params(tensors, model)
    except WeightsError as error:
        raise WeightsError(f"{error}{size_hint(tensors, model_name)}") from error
    copies = jax.tree.map(lambda x: np.array(x, order="C"), params)  # no views of the whole file
    return Weights(copies, model.num_classes, tuple(notes))


def fit_to_config(
    file: WeightFile,
    path: str | Path,
    model: ModelConfig,
    *,
    seed: int = 0,
    class_names: Sequence[str] = (),
) -> Weights:
    """Returns the weights of a file for the model of a config.

    If the file and the data set name their classes, the head is matched by name: its outputs are
    reordered, or it is new if the data set has other classes.

    Args:
        file: from `read_weight_file`.
        path: of the file, for messages.
        model: names the model and the sizes that differ from the published ones.
        seed: of a new head.
        class_names: of the data set, by label.

    Raises:
        WeightsError: the weights do not fit the model.
    """
    outputs = matched_outputs(file.class_names, class_names, model.num_classes)
    sizes = {
        name: value
        for name, value in dataclasses.asdict(model).items()
        if name not in _NO_SIZES and value is not None
    }
    try:
        check_model_name(file, model.name)
        weights = fit(
            file.state_dict,
            model.name,
            num_classes=model.num_classes,
            overrides=sizes,
            seed=seed,
            outputs=outputs,
        )
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error
    return dataclasses.replace(weights, notes=file.notes + weights.notes)


def matched_outputs(
    in_file: Sequence[str], requested: Sequence[str], num_classes: int | None
) -> list[int] | None:
    """Returns the output of a file's head to take for each class of a data set, by name.

    Args:
        in_file: class names of the file; empty if it names none.
        requested: class names of the data set; empty if it names none.
        num_classes: width of the model's head.

    Returns:
        Empty if the data set has other classes: the head must be new. None if nothing can be
        matched, or nothing needs to be.
    """
    if not in_file or not requested or tuple(in_file) == tuple(requested):
        return None
    labels = {name: label for label, name in enumerate(in_file)}
    known = set(requested) <= labels.keys() and len(requested) == num_classes
    return [labels[name] for name in requested] if known else []


def check_values(tensors: Mapping[str, np.ndarray]) -> None:
    """Checks that all arrays are floating-point and finite.

    Raises:
        WeightsError: names the arrays that are not.
    """
    for key, value in tensors.items():
        if not jnp.issubdtype(value.dtype, jnp.floating):
            raise WeightsError(f"{key} is {value.dtype}; weights must be floating-point")
    check_finite(tensors)


def _replace_head(tensors: StateDict, head: tuple[str, str], num_classes: int, seed: int) -> str:
    """Puts a new head into `tensors`, or removes it for no classes; returns a note about it."""
    kernel, bias = head
    in_file = tensors[bias].size
    if not num_classes:
        del tensors[kernel], tensors[bias]
        return f"the head for {in_file} classes is not used"
    width, dtype = tensors[kernel].shape[1], tensors[kernel].dtype
    tensors[kernel], tensors[bias] = _new_head(width, num_classes, dtype, seed)
    return (
        f"a new head for {num_classes} classes, as the file's is for {in_file}: it must be trained"
    )


def _add_head(tensors: StateDict, model: Backbone, seed: int) -> str:
    """Puts a head for the model into `tensors`, which have none; returns a note about it."""
    stages, dtype = model.stage_sizes, next(iter(tensors.values())).dtype
    kernel, bias = _HEADS[len(stages) > 1]
    tensors[kernel], tensors[bias] = _new_head(stages[-1][0], model.num_classes, dtype, seed)
    return f"a new head for {model.num_classes} classes, as the file has none: it must be trained"


def _new_head(
    width: int, num_classes: int, dtype: np.dtype, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the weight [num_classes, width] and the bias [num_classes] of a new head."""
    kernel = normal_002(jax.random.key(seed), (width, num_classes), jnp.float32)
    return np.asarray(kernel).T.astype(dtype), np.zeros(num_classes, dtype)


def _head(tensors: Mapping[str, np.ndarray]) -> tuple[str, str] | None:
    """Returns the names of the head's weight [classes, D] and bias [classes]; None without one."""
    for kernel, bias in _HEADS:
        if kernel in tensors and bias in tensors:
            shape = tensors[kernel].shape
            if len(shape) == 2 and shape[:1] == tensors[bias].shape:
                return kernel, bias
    return None


def chosen_model(file: WeightFile, path: str | Path, model_name: str | None) -> str:
    """Returns the model to read a file for: the given one, or else the one that the file names.

    Raises:
        ConfigError: there is neither.
    """
    if name := model_name or file.model_name:
        return name
    raise ConfigError(
        f"{path} does not name its model: it needs --model NAME (model_name in Python), one of "
        f"{', '.join(list_models())}"
    )


def check_model_name(file: WeightFile, model_name: str) -> None:
    """Checks that a file which names its model is read for that model.

    Raises:
        WeightsError: the names differ.
    """
    if file.model_name and file.model_name != model_name:
        raise WeightsError(f"the weights are those of {file.model_name}, not of {model_name}")


def size_hint(tensors: Mapping[str, np.ndarray], model_name: str) -> str:
    """Returns how to create the model that has these tensors, as far as they show it."""
    sizes: dict[str, tuple[int, int]] = {}
    heads: dict[str, int] = {}
    for key, value in tensors.items():
        stage, _, name = key.rpartition("blocks.")
        if re.fullmatch(r"\d+\.(attn_norm|norm)\.weight", name):
            sizes[stage] = value.size, sizes.get(stage, (0, 0))[1] + 1
        elif re.fullmatch(r"\d+\.(attn|op)\.g_norm\.weight", name) and value.size:
            heads[stage] = value.size
    found = tuple(sizes.values())
    known = next((name for name in list_models() if create_model(name).stage_sizes == found), None)
    if known not in (None, model_name):
        return f". Their sizes are those of {known}"
    if known or not found or heads.keys() != sizes.keys():
        return ""
    num_heads = tuple(width // heads[stage] for stage, (width, _) in sizes.items())
    widths, depths = zip(*found, strict=True)
    settings = (
        {"embed_dim": widths[0], "depth": depths[0], "num_heads": num_heads[0]}
        if len(found) == 1
        else {"embed_dims": widths, "depths": depths, "num_heads": num_heads}
    )
    arguments = ", ".join(f"{name}={value}" for name, value in settings.items())
    return (
        f". Their sizes are {arguments}: pass these to load_weights and create_model, as "
        "--set KEY=VALUE on the command line, or as config.model.KEY of a run"
    )


def with_present_names(state_dict: Mapping[str, np.ndarray]) -> StateDict:
    """Returns the state dict under upstream's present names, 1x1 convolutions as matrices.

    Raises:
        WeightsError: two names mean the same parameter.
    """
    hierarchical = any(key.startswith("layers.") for key in state_dict)
    result: StateDict = {}
    for key, value in state_dict.items():
        new = key
        for old_name, name in _OLD_NAMES if hierarchical else ():
            new = re.sub(f"^{old_name}", name, new)
        if new in result:
            raise WeightsError(f"{key} and another key both mean {new}")
        result[new] = value[:, :, 0, 0] if value.ndim == 4 and value.shape[2:] == (1, 1) else value
    return result
