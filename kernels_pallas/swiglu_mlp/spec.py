"""The static facts of one call."""

import dataclasses

import numpy as np

from ..core.types import Dim
from ..linear_swiglu.spec import LinearSwigluSpec
from ..swiglu.spec import SwigluSpec


@dataclasses.dataclass(frozen=True)
class SwigluMlpSpec:
    """The static facts of one call.

    Attributes:
        rows: Rows N of the input, all leading axes together.
        features: Width D of the input.
        width: Width I between the two linear maps.
        out_features: Width of the output.
        dtype: Type of input, weights and output.
    """

    rows: Dim
    features: int
    width: int
    out_features: int
    dtype: np.dtype

    @property
    def linear_swiglu(self) -> LinearSwigluSpec:
        """Returns the call of the first linear map with the gate."""
        return LinearSwigluSpec(self.rows, self.features, self.width, self.dtype)

    @property
    def swiglu(self) -> SwigluSpec:
        """Returns the call of the gate alone."""
        return SwigluSpec(self.rows, self.width, self.dtype)
