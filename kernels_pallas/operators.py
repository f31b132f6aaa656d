"""All operators with their cases, for programs and tests that work on any operator."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from . import (
    bidirectional_gla,
    depthwise_conv,
    gla,
    im2col,
    linear_swiglu,
    norm_act,
    residual_norm,
    resize_cross_entropy,
    swiglu,
    swiglu_mlp,
    vig_mixer,
)
from .core.arg_specs import Case
from .depthwise_conv import arg_specs as depthwise_conv_specs
from .gla import arg_specs as gla_specs
from .im2col import arg_specs as im2col_specs
from .linear_swiglu import arg_specs as linear_swiglu_specs
from .norm import arg_specs as norm_specs
from .resize_cross_entropy import arg_specs as resize_cross_entropy_specs
from .swiglu import arg_specs as swiglu_specs
from .swiglu_mlp import arg_specs as swiglu_mlp_specs
from .vig_mixer import arg_specs as vig_mixer_specs


class Operator(NamedTuple):
    """An operator and its cases.

    Attributes:
        function: The public function.
        cases: The calls that tests, benchmarks and autotuning share.
    """

    function: Callable[..., Any]
    cases: Sequence[Case]


OPERATORS: dict[str, Operator] = {
    "bidirectional_gla": Operator(bidirectional_gla, gla_specs.BIDIRECTIONAL_CASES),
    "depthwise_conv": Operator(depthwise_conv, depthwise_conv_specs.CASES),
    "gla": Operator(gla, gla_specs.GLA_CASES),
    "im2col": Operator(im2col, im2col_specs.CASES),
    "linear_swiglu": Operator(linear_swiglu, linear_swiglu_specs.CASES),
    "norm_act": Operator(norm_act, norm_specs.NORM_CASES),
    "residual_norm": Operator(residual_norm, norm_specs.RESIDUAL_CASES),
    "resize_cross_entropy": Operator(resize_cross_entropy, resize_cross_entropy_specs.CASES),
    "swiglu": Operator(swiglu, swiglu_specs.CASES),
    "swiglu_mlp": Operator(swiglu_mlp, swiglu_mlp_specs.CASES),
    "vig_mixer": Operator(vig_mixer, vig_mixer_specs.CASES),
}
"""All operators by name."""
