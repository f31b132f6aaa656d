"""Fast gated linear attention for JAX, usable on its own: `from kernels_pallas import gla`."""

from kernels_pallas.gla import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.norm import norm_act, residual_norm

__all__ = ["IMPLEMENTATIONS", "bidirectional_gla", "gla", "norm_act", "residual_norm"]
