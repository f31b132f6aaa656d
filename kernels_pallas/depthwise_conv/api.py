"""The public operator: what it means, what it accepts, and who computes it."""

from collections.abc import Sequence

from jaxtyping import Array, Float

from kernels_pallas.core.checks import checked_array
from kernels_pallas.core.dispatch import compiled, dispatch
from kernels_pallas.depthwise_conv import pallas_triton, reference, xla
from kernels_pallas.depthwise_conv.spec import DepthwiseConvSpec

# Best first: `implementation=None` takes the first that serves the call on the platform.
_MODULES = {"pallas_triton": pallas_triton, "xla": xla, "reference": reference}

IMPLEMENTATIONS: tuple[str, ...] = tuple(_MODULES)
"""Names accepted by `implementation=`, best first."""

_TABLE = compiled(_MODULES, "depthwise_conv")


def depthwise_conv(
    x: Float[Array, "B h w D"],
    kernel: Float[Array, "3 3 1 D"],
    *,
    activation: str | None = None,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "B h w D"]:
    """Convolution of each channel with its own 3x3 kernel, stride 1, zero padding 1, no bias.

    With zeros outside of the map::

        out[y, x] = activation(sum_ij kernel[i, j] * x[y + i - 1, x + j - 1])    # per channel

    Sums and the activation are float32 (float64 for float64), whatever the type of x.
    Differentiable in both arrays.

    Args:
        x: Maps; float32, bfloat16, float16 or float64.
        kernel: Weights in Flax's layout (HWIO), type of x.
        activation: None, or "silu" for a * sigmoid(a) of the sum a.
        implementation: None for the best one on the platform the program is lowered for, a name
            out of `kernels_pallas.depthwise_conv.IMPLEMENTATIONS`, or several to try in order.

    Returns:
        Maps in the type of x.

    Raises:
        TypeError: An argument is not an array, of a type not listed above, or of another than x.
        ValueError: Shapes do not fit together; the activation or an implementation is unknown.
        NotImplementedError: The implementation asked for cannot serve this call.
    """
    x, kernel = checked_array("x", x), checked_array("kernel", kernel)
    if x.ndim != 4 or 0 in x.shape[1:]:
        raise ValueError(
            "x must have four axes [batch, rows, columns, channels], all but the first of at least "
            f"1, got shape {x.shape}"
        )
    wanted = (3, 3, 1, x.shape[3])
    if kernel.shape != wanted:
        raise ValueError(
            f"kernel must have shape [3, 3, 1, channels of x], {wanted}, got {kernel.shape}"
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
        table=_TABLE,
        order=IMPLEMENTATIONS,
    )
