"""The static facts of one call."""

import dataclasses

import numpy as np

from ..core.types import Dim


@dataclasses.dataclass(frozen=True)
class Im2colSpec:
    """The static facts of one call.

    Attributes:
        batch: Images B.
        height: Rows of pixels H.
        width: Columns of pixels W.
        channels: Numbers per pixel C.
        kernel_size: Rows and columns of the convolution's kernel.
        stride: Pixels from one position of the kernel to the next.
        columns: Numbers per position in the output, the padding included.
        dtype: Type of images and output.
        ones: The first column after the pixels is 1 instead of 0.
    """

    batch: Dim
    height: int
    width: int
    channels: int
    kernel_size: int
    stride: int
    columns: int
    dtype: np.dtype
    ones: bool = False

    @property
    def positions(self) -> tuple[int, int]:
        """Returns the rows h and columns w of positions of the kernel."""
        h, w = (
            (side + 2 - self.kernel_size) // self.stride + 1 for side in (self.height, self.width)
        )
        return h, w

    @property
    def taken(self) -> int:
        """Returns the numbers under the kernel: the columns that are pixels."""
        return self.kernel_size**2 * self.channels
