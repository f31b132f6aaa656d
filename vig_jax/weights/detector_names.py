"""The names and layouts of Mask R-CNN in the state dicts of other projects."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from vig_jax.models import Detector
from vig_jax.weights.dense import DenseTables, Variables
from vig_jax.weights.table import SAME, Layout, Rules

_BINS = 7  # rows and columns that the box head reads
_CURE = "check the model name, num_classes, channels, box_channels, masks and img_size"


@dataclasses.dataclass(frozen=True)
class DetectorNames:
    """The names of another project for the parts of Mask R-CNN.

    Attributes:
        tables: of all parameters.
        heads: prefixes by which a state dict is recognised.
        backbone: prefix of the backbone's names.
        rpn_conv: name of the first kernel of the RPN head.
        first_layer: name of the first kernel of the box head.
        logits: prefix of the last layer for classes.
        deltas: prefix of the last layer for boxes.
        masks: prefix of the mask head's names.
        mask_logits: prefix of the last layer for masks.
        background_first: whether these layers have outputs for the background, before those of
            class 0. False: the background is the last logit.
        simple_pyramid: whether there are names for the neck of plain models.
    """

    tables: DenseTables
    heads: tuple[str, ...]
    backbone: str
    rpn_conv: str
    first_layer: str
    logits: str
    deltas: str
    masks: str
    mask_logits: str
    background_first: bool = False
    simple_pyramid: bool = True

    def to_variables(
        self, state_dict: Mapping[str, np.ndarray], model: Detector, new: Collection[str] = ()
    ) -> Variables:
        """Returns our variables for `model` from their state dict.

        Args:
            state_dict: their names to arrays, all of them.
            model: from `vig_jax.create_detector`.
            new: prefixes of names that the state dict lacks and the result leaves out.

        Returns:
            {"params": ...} for `model.apply`; dtypes are kept.

        Raises:
            WeightsError: lists the missing and unexpected names and the shapes that differ.
        """
        return self.tables.to_variables(state_dict, model, new, cure=_CURE)

    def from_variables(self, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns their state dict of a detector's variables, the inverse of `to_variables`.

        Raises:
            WeightsError: names the variables that the project does not have.
        """
        return self.tables.from_variables(variables)


def _pooled_to_ours(x: np.ndarray) -> np.ndarray:
    """Returns [out, in * 7 * 7] as [7 * 7 * in, out]: channels are first there and last here."""
    if x.ndim != 2 or x.shape[1] % _BINS**2:
        raise ValueError(f"{x.shape} is not a linear map of {_BINS}x{_BINS} bins")
    return x.reshape(len(x), -1, _BINS, _BINS).transpose(2, 3, 1, 0).reshape(-1, len(x))


def _pooled_to_theirs(x: np.ndarray) -> np.ndarray:
    return x.reshape(_BINS, _BINS, -1, x.shape[1]).transpose(3, 2, 0, 1).reshape(x.shape[1], -1)


POOLED = Layout(_pooled_to_ours, _pooled_to_theirs)


def layer(theirs: str, ours: str, kernel: Layout, bias: Layout = SAME) -> Rules:
    """Returns the rules of a convolution or a linear map."""
    return (
        (f"{theirs}.weight", f"params/{ours}/kernel", kernel),
        (f"{theirs}.bias", f"params/{ours}/bias", bias),
    )
