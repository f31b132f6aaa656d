"""Gated linear attention: the operator, its implementations and the shapes they are made for."""

from kernels_pallas.gla.api import IMPLEMENTATIONS, bidirectional_gla, gla

__all__ = ["IMPLEMENTATIONS", "bidirectional_gla", "gla"]
