"""Semantic segmentation with UperNet, as in mmsegmentation."""

from vig_jax.tasks.segmentation.build import ENTRY
from vig_jax.tasks.segmentation.task import Segmentation

__all__ = ["ENTRY", "Segmentation"]
