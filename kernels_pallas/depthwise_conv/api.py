"""The public operator: its definition, its argument checks and its implementations."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from . import pallas_triton, reference, xla
from .spec import DepthwiseConvSpec

_TABLE = implementations({"pallas_triton": pallas_triton, "xla": xla, "reference": reference})

IMPLEMENTATIONS: tuple[str, ...] = tuple(_TABLE)
"""Names that `implementation=` accepts, best first."""


def depthwise_conv(
    x: Float[Array, "B h w D"],
    kernel: Float[Array, "3 3 1 D"],
    *,
    activation: str | None = None,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> Float[Array, "B h w D"]:
    """Convolves each channel with its 3x3 kernel; stride 1, zero padding 1, no bias.

    With zeros outside of the map::

        out[y, x] = activation(sum_ij kernel[i, j] * x[y + i - 1, x + j - 1])    # per channel

    Sums and the activation are float32 (float64 for float64), whatever the type of x.
    Differentiable in both arrays.

    Args:
        x: Maps; float32, bfloat16, float16 or float64.
        kernel: Weights in Flax's layout (HWIO), type of x.
        activation: None, or "silu" for a * sigmoid(a) of the sum a.
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.depthwise_conv.IMPLEMENTATIONS`, or several names to try in
            order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        Maps in the type of x.

    Raises:
        TypeError: An argument is not an array, or has a type not listed above or another one than
            x; or the config does not belong to the implementation.
        ValueError: Shapes do not fit together; the activation or an implementation is unknown.
        NotImplementedError: The implementation that was named cannot serve this call.
    """
    x, kernel = checked_array("x", x), checked_array("kernel", kernel)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(
            "x must have four axes [batch, rows, columns, channels], all but the first of at least "
            f"1, got shape {x.shape}"
        )
    expected = (3, 3, 1, x.shape[3])
    if kernel.shape != expected:
        raise ValueError(
            f"kernel must have shape [3, 3, 1, channels of x], {expected}, got {kernel.shape}"
        )
    if kernel.dtype != x.dtype:
        raise TypeError(f"kernel must have the type of x, {x.dtype}, got {kernel.dtype}: cast")
    if activation not in (None, "silu"):
        raise ValueError(f'activation must be None or "silu", got {activation!r}')
    batch, height, width, channels = x.shape
    return dispatch(
        "depthwise_conv",
        DepthwiseConvSpec(batch, height, width, channels, x.dtype, activation),
        (x, kernel),
        implementation=implementation,
        config=config,
        table=_TABLE,
    )
