"""Detection and instance segmentation with Mask R-CNN, as in mmdetection."""

from vig_jax.tasks.detection.build import ENTRY
from vig_jax.tasks.detection.task import Detection

__all__ = ["ENTRY", "Detection"]
