"""Translates names and layouts of mmsegmentation's segmentors to ours and back, strictly.

Their state dict has the parameters and the running statistics in one mapping: `backbone.*` with
the names of hustvl/ViG, `neck.*` (Feature2Pyramid), `decode_head.*` (UPerHead) and
`auxiliary_head.*` (FCNHead).
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vig_jax.errors import WeightsError
from vig_jax.models import Segmenter
from vig_jax.weights.dense import DenseTables, Variables, deconv
from vig_jax.weights.table import CONV, POINT, SAME, Rules

AUXILIARY = "auxiliary_head."
HEADS = ("decode_head.", AUXILIARY)
_COUNTER = ".num_batches_tracked"  # of each batch normalisation; only a momentum of None reads it
_MEAN = ".running_mean"


def _batch_norm(theirs: str, ours: str) -> Rules:
    return (
        (f"{theirs}.weight", f"params/{ours}/scale", SAME),
        (f"{theirs}.bias", f"params/{ours}/bias", SAME),
        (f"{theirs}.running_mean", f"batch_stats/{ours}/mean", SAME),
        (f"{theirs}.running_var", f"batch_stats/{ours}/var", SAME),
    )


def _conv_module(theirs: str, ours: str) -> Rules:
    return (
        (f"{theirs}.conv.weight", f"params/{ours}/conv/kernel", CONV),
        *_batch_norm(f"{theirs}.bn", f"{ours}/bn"),
    )


def _logits(head: str) -> Rules:
    return (
        (f"{head}.conv_seg.weight", f"params/{head}/conv_seg/kernel", POINT),
        (f"{head}.conv_seg.bias", f"params/{head}/conv_seg/bias", SAME),
    )


_HEADS: Rules = (
    *deconv("neck.upsample_4x.0", "neck/upsample_4x_0"),
    *_batch_norm("neck.upsample_4x.1", "neck/upsample_4x_1"),
    *deconv("neck.upsample_4x.3", "neck/upsample_4x_3"),
    *deconv("neck.upsample_2x.0", "neck/upsample_2x_0"),
    *_conv_module("decode_head.psp_modules.{i}.1", "decode_head/psp_modules_{i}"),
    *_conv_module("decode_head.bottleneck", "decode_head/bottleneck"),
    *_conv_module("decode_head.lateral_convs.{i}", "decode_head/lateral_convs_{i}"),
    *_conv_module("decode_head.fpn_convs.{i}", "decode_head/fpn_convs_{i}"),
    *_conv_module("decode_head.fpn_bottleneck", "decode_head/fpn_bottleneck"),
    *_logits("decode_head"),
    *_conv_module("auxiliary_head.convs.{i}", "auxiliary_head/convs_{i}"),
    *_logits("auxiliary_head"),
)
TABLES = DenseTables.of(_HEADS, "mmsegmentation")


def is_segmenter(names: Collection[str]) -> bool:
    """Returns whether a state dict with these names is that of a segmenter."""
    return any(name.startswith(HEADS) for name in names)


def to_variables(
    state_dict: Mapping[str, np.ndarray], model: Segmenter, new: Collection[str] = ()
) -> Variables:
    """Returns our variables for `model` from a state dict of mmsegmentation.

    Args:
        state_dict: their names to arrays, all of them.
        model: from `vig_jax.create_segmenter`.
        new: prefixes of names that the state dict lacks and the result leaves out.

    Returns:
        {"params": ..., "batch_stats": ...} for `model.apply`; dtypes are kept.

    Raises:
        WeightsError: lists the missing and unexpected names and the shapes that differ.
    """
    cure = (
        "check the model name, num_classes, channels, aux_channels (0: no auxiliary head), "
        "norm_last and img_size"
    )
    return TABLES.to_variables(_without_counters(state_dict), model, new, cure=cure)


def from_variables(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns their state dict of a segmenter's variables, the inverse of `to_variables`.

    Each batch normalisation gets its counter `num_batches_tracked`, int64 0, which PyTorch's
    strict loading asks for.

    Raises:
        WeightsError: names the variables that mmsegmentation does not have.
    """
    state_dict = TABLES.from_variables(variables)
    counters = [key.replace(_MEAN, _COUNTER) for key in state_dict if key.endswith(_MEAN)]
    return state_dict | {key: np.zeros((), np.int64) for key in counters}


def is_counter(key: str, state_dict: Mapping[str, Any]) -> bool:
    """Returns whether a name is the counter of a batch normalisation of the state dict."""
    return key.endswith(_COUNTER) and key.removesuffix(_COUNTER) + _MEAN in state_dict


def _without_counters(state_dict: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the state dict without the counters of its batch normalisations.

    Raises:
        WeightsError: a counter is not one integer.
    """
    result = {}
    for key, value in state_dict.items():
        if is_counter(key, state_dict):
            if value.size != 1 or not np.issubdtype(value.dtype, np.integer):
                raise WeightsError(f"{key} is {value.dtype}{value.shape}; it must be one integer")
        else:
            result[key] = value
    return result
