"""Gated linear attention: operators, implementations and named shapes."""

from .api import IMPLEMENTATIONS, bidirectional_gla, gla
from .step import gla_step

__all__ = ["IMPLEMENTATIONS", "bidirectional_gla", "gla", "gla_step"]
