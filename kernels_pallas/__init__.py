"""Fast operators for JAX, usable on their own: `from kernels_pallas import gla`."""

from kernels_pallas.depthwise_conv import depthwise_conv
from kernels_pallas.gla import IMPLEMENTATIONS, bidirectional_gla, gla

__all__ = ["IMPLEMENTATIONS", "bidirectional_gla", "depthwise_conv", "gla"]
