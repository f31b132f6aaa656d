"""ViG's token mixer after its projections, as one operator."""

from kernels_pallas.vig_mixer.api import IMPLEMENTATIONS, vig_mixer

__all__ = ["IMPLEMENTATIONS", "vig_mixer"]
