"""Finds the fastest configs of kernels on the GPU at hand, and stores them."""

from kernels_pallas.autotune.search import autotune

__all__ = ["autotune"]
