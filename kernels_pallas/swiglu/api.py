"""The public operator: what it means, what it accepts, and who computes it."""

import math
from collections.abc import Sequence

from jaxtyping import Array, Float

from kernels_pallas.core.checks import checked_array
from kernels_pallas.core.dispatch import compiled, dispatch
from kernels_pallas.swiglu import pallas_triton, reference, xla
from kernels_pallas.swiglu.spec import SwigluSpec

# Best first: `implementation=None` takes the first that serves the call on the platform.
_MODULES = {"pallas_triton": pallas_triton, "xla": xla, "reference": reference}

IMPLEMENTATIONS: tuple[str, ...] = tuple(_MODULES)
"""Names accepted by `implementation=`, best first."""

_TABLE = compiled(_MODULES, "swiglu")


def swiglu(
    x: Float[Array, "... X"],
    *,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "... I"]:
    """SwiGLU's gate: `silu(gate) * y` for x = [gate | y], where silu(z) = z / (1 + exp(-z)).

    Computed in float32 (float64 for float64 inputs) and rounded once. Differentiable; x is all
    that is kept for the backward pass.

    Args:
        x: Gates in the first half of the last axis, what they gate in the second; float32,
            bfloat16, float16 or float64.
        implementation: None for the best one on the platform the program is lowered for, a name
            out of `kernels_pallas.swiglu.IMPLEMENTATIONS`, or several names to try in order.

    Returns:
        An array half as wide, type of x.

    Raises:
        TypeError: x is not an array, or of a type not listed above.
        ValueError: The last axis is missing, empty or of odd size, or an implementation unknown.
        NotImplementedError: The implementation asked for cannot serve this call.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    x = checked_array("x", x)
    if x.ndim == 0 or x.shape[-1] == 0 or x.shape[-1] % 2:
        raise ValueError(
            f"x must be [..., gate | y] with a last axis of even size, at least 2, got {x.shape}"
        )
    spec = SwigluSpec(rows=math.prod(x.shape[:-1]), width=x.shape[-1] // 2, dtype=x.dtype)
    return dispatch(
        "swiglu",
        spec,
        (x,),
        implementation=implementation,
        table=_TABLE,
        order=IMPLEMENTATIONS,
    )
