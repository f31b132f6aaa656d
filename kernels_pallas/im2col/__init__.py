"""The pixels under each position of a convolution's kernel: the operator, its implementations."""

from .api import IMPLEMENTATIONS, im2col

__all__ = ["IMPLEMENTATIONS", "im2col"]
