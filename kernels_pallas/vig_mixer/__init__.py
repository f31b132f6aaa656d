"""ViG's token mixer after its projections, as one operator."""

from .api import IMPLEMENTATIONS, vig_mixer

__all__ = ["IMPLEMENTATIONS", "vig_mixer"]
