"""The SwiGLU MLP: the operator and its implementations."""

from kernels_pallas.swiglu_mlp.api import IMPLEMENTATIONS, swiglu_mlp

__all__ = ["IMPLEMENTATIONS", "swiglu_mlp"]
