"""Fast operators for JAX, usable on their own: `from kernels_pallas import gla`."""

from kernels_pallas.autotune import autotune
from kernels_pallas.core.choice import implementations
from kernels_pallas.depthwise_conv import depthwise_conv
from kernels_pallas.gla import IMPLEMENTATIONS, bidirectional_gla, gla, gla_step
from kernels_pallas.im2col import im2col
from kernels_pallas.linear_swiglu import linear_swiglu
from kernels_pallas.norm import norm_act, residual_norm
from kernels_pallas.resize_cross_entropy import resize_cross_entropy
from kernels_pallas.swiglu import swiglu
from kernels_pallas.swiglu_mlp import swiglu_mlp
from kernels_pallas.vig_mixer import vig_mixer

__all__ = [
    "IMPLEMENTATIONS",
    "autotune",
    "bidirectional_gla",
    "depthwise_conv",
    "gla",
    "gla_step",
    "im2col",
    "implementations",
    "linear_swiglu",
    "norm_act",
    "residual_norm",
    "resize_cross_entropy",
    "swiglu",
    "swiglu_mlp",
    "vig_mixer",
]
