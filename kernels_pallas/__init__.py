"""Fast operators for JAX, usable on their own: `from kernels_pallas import gla`."""

from .autotune import autotune
from .core.choice import implementations
from .depthwise_conv import depthwise_conv
from .gla import IMPLEMENTATIONS, bidirectional_gla, gla, gla_step
from .im2col import im2col
from .linear_swiglu import linear_swiglu
from .norm import norm_act, residual_norm
from .resize_cross_entropy import resize_cross_entropy
from .swiglu import swiglu
from .swiglu_mlp import swiglu_mlp
from .vig_mixer import vig_mixer

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
