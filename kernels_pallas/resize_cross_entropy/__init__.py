"""Cross entropy of logits that are resized to the labels: the operator, its implementations."""

from .api import IMPLEMENTATIONS, resize_cross_entropy

__all__ = ["IMPLEMENTATIONS", "resize_cross_entropy"]
