"""Fast gated linear attention for JAX, usable on its own: `from kernels_pallas import gla`."""

from kernels_pallas.gla import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.vig_mixer import vig_mixer

__all__ = ["IMPLEMENTATIONS", "bidirectional_gla", "gla", "vig_mixer"]
