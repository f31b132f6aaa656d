"""Normalisation over channels, with what stands around it: residual sum before, activation after."""

from kernels_pallas.norm.api import IMPLEMENTATIONS, norm_act, residual_norm

__all__ = ["IMPLEMENTATIONS", "norm_act", "residual_norm"]
