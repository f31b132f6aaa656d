"""The pixels under each position of a convolution's kernel: the operator, its implementations."""

from kernels_pallas.conv_patches.api import IMPLEMENTATIONS, conv_patches

__all__ = ["IMPLEMENTATIONS", "conv_patches"]
