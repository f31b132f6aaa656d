"""The SwiGLU MLP: the operator and its implementations."""

from .api import IMPLEMENTATIONS, swiglu_mlp

__all__ = ["IMPLEMENTATIONS", "swiglu_mlp"]
