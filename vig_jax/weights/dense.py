"""Translates a backbone with neck and heads between another project's state dict and our variables.

Their state dict has `backbone.*` with the names of hustvl/ViG, and their own names for the rest.
"""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from vig_jax.models import Detector, Segmenter
from vig_jax.weights import upstream
from vig_jax.weights.table import DECONV, SAME, Rules, their_name, to_ours, to_theirs

Variables = dict[str, Any]

BACKBONE = "backbone."


@dataclasses.dataclass(frozen=True)
class DenseTables:
    """The tables of another project for models with a neck and heads.

    Attributes:
        plain: of models with a plain backbone.
        hierarchical: of models with a hierarchical backbone.
        whose: name of the project, for messages.
    """

    plain: Rules
    hierarchical: Rules
    whose: str

    @classmethod
    def of(cls, neck_and_heads: Rules, whose: str, prefix: str = BACKBONE) -> "DenseTables":
        """Returns the tables with those of upstream for the backbone, whose names have a prefix."""

        def table(backbone: Rules) -> Rules:
            below = (
                (prefix + theirs, f"params/backbone/{ours}", layout)
                for theirs, ours, layout in backbone
            )
            return (*below, *neck_and_heads)

        return cls(table(upstream.PLAIN), table(upstream.HIERARCHICAL), whose)

    def to_variables(
        self,
        state_dict: Mapping[str, np.ndarray],
        model: Segmenter | Detector,
        new: Collection[str],
        *,
        cure: str,
    ) -> Variables:
        """Returns our variables for `model` from their state dict.

        Args:
            state_dict: their names to arrays, all of them.
            model: the segmenter or detector.
            new: prefixes of names that the state dict lacks and the result leaves out.
            cure: what to check if the arrays do not fit, for the message.

        Returns:
            Variables for `model.apply`; dtypes are kept.

        Raises:
            WeightsError: lists the missing and unexpected names and the shapes that differ.
        """
        shapes = upstream.variable_shapes(model)
        rules = self._of_family(shapes)
        expected = {
            path: shape
            for path, shape in shapes.items()
            if not their_name(rules, path).startswith(tuple(new))
        }
        flat = to_ours(rules, state_dict, expected, cure=cure)
        return traverse_util.unflatten_dict(flat, sep="/")

    def from_variables(self, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Returns their state dict of a model's variables, the inverse of `to_variables`.

        Raises:
            WeightsError: names the variables that the project does not have.
        """
        flat = traverse_util.flatten_dict(dict(variables), sep="/")
        return to_theirs(self._of_family(flat), flat, whose=self.whose)

    def _of_family(self, paths: Collection[str]) -> Rules:
        """Returns the table of the family that has these variables."""
        return self.hierarchical if any("/stages_" in path for path in paths) else self.plain


def deconv(theirs: str, ours: str) -> Rules:
    """Returns the rules of a transposed 2x2 convolution."""
    return (
        (f"{theirs}.weight", f"params/{ours}/kernel", DECONV),
        (f"{theirs}.bias", f"params/{ours}/bias", SAME),
    )
