"""Image classification with the augmentations of timm."""

from vig_jax.tasks.classification.build import ENTRY
from vig_jax.tasks.classification.task import Classification, augment

__all__ = ["ENTRY", "Classification", "augment"]
