"""Normalisation over channels, with the residual sum before it or an activation after it."""

from .api import IMPLEMENTATIONS, norm_act, residual_norm

__all__ = ["IMPLEMENTATIONS", "norm_act", "residual_norm"]
