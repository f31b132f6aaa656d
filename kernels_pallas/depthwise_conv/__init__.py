"""Depthwise 3x3 convolution of maps, with an optional activation."""

from .api import IMPLEMENTATIONS, depthwise_conv

__all__ = ["IMPLEMENTATIONS", "depthwise_conv"]
