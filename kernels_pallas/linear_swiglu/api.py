"""The public operator: what it means, what it accepts, and who computes it."""

import math
from collections.abc import Sequence

from jaxtyping import Array, Float

from kernels_pallas.core.checks import checked_array
from kernels_pallas.core.dispatch import compiled, dispatch
from kernels_pallas.linear_swiglu import pallas_triton, reference, xla
from kernels_pallas.linear_swiglu.spec import LinearSwigluSpec

# Best first: `implementation=None` takes the first that serves the call on the platform.
_MODULES = {"pallas_triton": pallas_triton, "xla": xla, "reference": reference}

IMPLEMENTATIONS: tuple[str, ...] = tuple(_MODULES)
"""Names accepted by `implementation=`, best first."""

_TABLE = compiled(_MODULES, "linear_swiglu")


def linear_swiglu(
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    *,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "... I"]:
    """`silu(gate) * y` for x @ kernel = [gate | y], where silu(z) = z / (1 + exp(-z)).

    Without differentiation the product need not be written to memory; then it is not rounded
    either. Differentiable in both arrays.

    Args:
        x: Inputs; float32, bfloat16, float16 or float64.
        kernel: Weights [D, 2I], those of the gates in the first half of the columns; type of x.
        implementation: None for the best one on the platform the program is lowered for, a name
            out of `kernels_pallas.linear_swiglu.IMPLEMENTATIONS`, or several names to try in order.

    Returns:
        An array of width I, type of x.

    Raises:
        TypeError: An argument is not an array, or of a type not listed above.
        ValueError: Shapes do not fit together, or an implementation is unknown.
        NotImplementedError: The implementation asked for cannot serve this call.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    x, kernel = checked_array("x", x), checked_array("kernel", kernel)
    if kernel.dtype != x.dtype:
        raise TypeError(f"kernel must have the type of x, {x.dtype}, got {kernel.dtype}: cast")
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have a last axis of at least one feature, got shape {x.shape}")
    if kernel.ndim != 2 or kernel.shape[0] != x.shape[-1]:
        raise ValueError(
            f"kernel must be [D, 2I] for the D = {x.shape[-1]} features of x, got {kernel.shape}"
        )
    if kernel.shape[1] == 0 or kernel.shape[1] % 2:
        raise ValueError(
            f"kernel must be [D, gate | y] with columns of even number, got shape {kernel.shape}"
        )
    spec = LinearSwigluSpec(
        rows=math.prod(x.shape[:-1]),
        features=x.shape[-1],
        width=kernel.shape[1] // 2,
        dtype=x.dtype,
    )
    return dispatch(
        "linear_swiglu",
        spec,
        (x, kernel),
        implementation=implementation,
        table=_TABLE,
        order=IMPLEMENTATIONS,
    )
