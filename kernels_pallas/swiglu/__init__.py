"""SwiGLU's gate: the operator and its implementations."""

from kernels_pallas.swiglu.api import IMPLEMENTATIONS, swiglu

__all__ = ["IMPLEMENTATIONS", "swiglu"]
