"""Gated linear attention: operators, implementations and named shapes."""

from kernels_pallas.gla.api import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.gla.step import gla_step

__all__ = ["IMPLEMENTATIONS", "bidirectional_gla", "gla", "gla_step"]
