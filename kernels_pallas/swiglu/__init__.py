"""SwiGLU's gate: the operator and its implementations."""

from .api import IMPLEMENTATIONS, swiglu

__all__ = ["IMPLEMENTATIONS", "swiglu"]
