"""Fits the backbone of a weight file to a segmenter or detector."""

from collections.abc import Mapping

import numpy as np

from vig_jax.models import Detector, Segmenter
from vig_jax.weights import upstream
from vig_jax.weights.dense import BACKBONE
from vig_jax.weights.fit import (
    WeightFile,
    check_values,
    size_hint,
    with_present_names,
)
from vig_jax.weights.fit_inputs import StateDict, fit_inputs

_CLASSIFIER = ("head.", "classifier.head.")
_FINAL_NORM = ("norm.", "classifier.norm.")


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
    notes += fit_inputs(tensors, model)
    shapes = upstream.variable_shapes(model)
    tensors |= upstream.new_out_norms(tensors, shapes, "params/backbone/")
    return {BACKBONE + key: value for key, value in tensors.items()}, tuple(notes)


def with_present_backbone(
    state_dict: Mapping[str, np.ndarray], prefix: str = BACKBONE
) -> StateDict:
    """Returns the state dict with the backbone under upstream's present names.

    Args:
        state_dict: of a segmenter or detector.
        prefix: of the backbone's names.
    """
    backbone = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
    rest = {key: value for key, value in state_dict.items() if not key.startswith(prefix)}
    return {prefix + key: value for key, value in with_present_names(backbone).items()} | rest


def hint_of_sizes(
    heads: Mapping[str, int | bool],
    backbone: Mapping[str, np.ndarray],
    model_name: str,
    model: Segmenter | Detector,
) -> str:
    """Returns the sizes of a file that differ from the model's, as far as it shows them.

    Args:
        heads: attributes of the model, with the sizes that the file shows.
        backbone: tensors of the file under upstream's names.
        model_name: one of `vig_jax.list_models()`.
        model: the segmenter or detector.
    """
    different = [
        f"{name}={value}" for name, value in heads.items() if getattr(model, name) != value
    ]
    about_heads = f". The file's heads have {', '.join(different)}" if different else ""
    return about_heads + size_hint(backbone, model_name)
