"""A linear map with SwiGLU's gate behind it: the operator and its implementations."""

from .api import IMPLEMENTATIONS, linear_swiglu

__all__ = ["IMPLEMENTATIONS", "linear_swiglu"]
