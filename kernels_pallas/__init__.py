"""Fast operators for JAX, usable on their own: `from kernels_pallas import gla`."""

from kernels_pallas.gla import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.linear_swiglu import linear_swiglu
from kernels_pallas.swiglu import swiglu

__all__ = ["IMPLEMENTATIONS", "bidirectional_gla", "gla", "linear_swiglu", "swiglu"]
