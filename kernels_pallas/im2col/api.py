"""The public operator: its definition, its argument checks and its implementations."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from ..core.integers import cdiv
from . import pallas_triton, reference, xla
from .spec import Im2colSpec

_TABLE = implementations({"pallas_triton": pallas_triton, "xla": xla, "reference": reference})

IMPLEMENTATIONS: tuple[str, ...] = tuple(_TABLE)
"""Names that `implementation=` accepts, best first."""


def im2col(
    images: Float[Array, "B H W C"],
    *,
    kernel_size: int,
    stride: int,
    columns: int | None = None,
    ones: bool = False,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> Float[Array, "B h w X"]:
    """Copies the pixels under each position of a square convolution kernel side by side.

    With zeros outside of the image::

        out[y, x, (i * kernel_size + j) * C + c] = image[y * stride + i - 1, x * stride + j - 1, c]

    So a convolution of zero padding 1 is the product of the result and `kernel.reshape(-1, D)` for
    a kernel in Flax's layout (HWIO). Columns of zeros follow, because products are faster for rows
    of whole 16-byte pieces. With `ones` the first of them is 1, and its weights in the product are
    a bias. Differentiable.

    Args:
        images: float32, bfloat16, float16 or float64.
        kernel_size: Rows and columns of the kernel, at most those of the image and 2.
        stride: From one position to the next, at least 1.
        columns: Columns X of the output, at least kernel_size**2 * C, with `ones` one more; None
            rounds that up to a multiple of 32.
        ones: Sets the first column after the pixels to 1.
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.im2col.IMPLEMENTATIONS`, or several names to try in order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        An array of h = (H + 2 - kernel_size) // stride + 1 rows and w columns of positions, in the
        type of the images.

    Raises:
        TypeError: The images are not an array or have a type not listed above, or the config does
            not belong to the implementation.
        ValueError: The images do not have four axes, the kernel does not fit into them, there are
            too few columns, the stride is not positive, or an implementation is unknown.
        NotImplementedError: The implementation that was named cannot serve this call.
    """
    images = checked_array("images", images)
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise ValueError(
            "images must have four axes [batch, rows, columns, channels], all but the first of at "
            f"least 1, got shape {images.shape}"
        )
    batch, height, width, channels = images.shape
    if not 1 <= kernel_size <= min(height, width) + 2:
        raise ValueError(
            f"kernel_size must be from 1 to {min(height, width) + 2}, the smaller side of images "
            f"of {height}x{width} with their padding, got {kernel_size}"
        )
    if stride < 1:
        raise ValueError(f"stride must be at least 1, got {stride}")
    least = kernel_size**2 * channels + ones
    if columns is None:
        columns = 32 * cdiv(least, 32)
    if columns < least:
        raise ValueError(
            f"columns must be at least {least} = kernel_size**2 * channels{' + 1' * ones}, "
            f"got {columns}"
        )
    return dispatch(
        "im2col",
        Im2colSpec(
            batch, height, width, channels, kernel_size, stride, columns, images.dtype, ones
        ),
        (images,),
        implementation=implementation,
        config=config,
        table=_TABLE,
    )
