"""Finds the fastest configs of kernels on the GPU at hand, and stores them."""

from .search import autotune

__all__ = ["autotune"]
