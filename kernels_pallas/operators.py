"""All operators with their cases, for programs and tests that work on any operator."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import kernels_pallas
from kernels_pallas.core.arg_specs import Case
from kernels_pallas.depthwise_conv import arg_specs as depthwise_conv
from kernels_pallas.gla import arg_specs as gla
from kernels_pallas.im2col import arg_specs as im2col
from kernels_pallas.linear_swiglu import arg_specs as linear_swiglu
from kernels_pallas.norm import arg_specs as norm
from kernels_pallas.resize_cross_entropy import arg_specs as resize_cross_entropy
from kernels_pallas.swiglu import arg_specs as swiglu
from kernels_pallas.swiglu_mlp import arg_specs as swiglu_mlp
from kernels_pallas.vig_mixer import arg_specs as vig_mixer


class Operator(NamedTuple):
    """An operator and its cases.

    Attributes:
        function: The public function.
        cases: The calls that tests, benchmarks and autotuning share.
    """

    function: Callable[..., Any]
    cases: Sequence[Case]


OPERATORS: dict[str, Operator] = {
    "bidirectional_gla": Operator(kernels_pallas.bidirectional_gla, gla.BIDIRECTIONAL_CASES),
    "depthwise_conv": Operator(kernels_pallas.depthwise_conv, depthwise_conv.CASES),
    "gla": Operator(kernels_pallas.gla, gla.GLA_CASES),
    "im2col": Operator(kernels_pallas.im2col, im2col.CASES),
    "linear_swiglu": Operator(kernels_pallas.linear_swiglu, linear_swiglu.CASES),
    "norm_act": Operator(kernels_pallas.norm_act, norm.NORM_CASES),
    "residual_norm": Operator(kernels_pallas.residual_norm, norm.RESIDUAL_CASES),
    "resize_cross_entropy": Operator(
        kernels_pallas.resize_cross_entropy, resize_cross_entropy.CASES
    ),
    "swiglu": Operator(kernels_pallas.swiglu, swiglu.CASES),
    "swiglu_mlp": Operator(kernels_pallas.swiglu_mlp, swiglu_mlp.CASES),
    "vig_mixer": Operator(kernels_pallas.vig_mixer, vig_mixer.CASES),
}
"""All operators by name."""
