"""The public operator: its definition, its argument checks and its implementations."""

import math
from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from . import pallas_triton, reference, xla
from .spec import SwigluSpec

_TABLE = implementations({"pallas_triton": pallas_triton, "xla": xla, "reference": reference})

IMPLEMENTATIONS: tuple[str, ...] = tuple(_TABLE)
"""Names that `implementation=` accepts, best first."""


def swiglu(
    x: Float[Array, "... X"],
    *,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> Float[Array, "... I"]:
    """Computes SwiGLU's gate: `silu(gate) * up` for x = [gate | up], silu(z) = z / (1 + exp(-z)).

    Computes in float32 (float64 for float64 inputs) and rounds once. Differentiable; x is all that
    is kept for the backward pass.

    Args:
        x: The gates in the first half of the last axis, what they multiply in the second half;
            float32, bfloat16, float16 or float64.
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.swiglu.IMPLEMENTATIONS`, or several names to try in order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        An array half as wide, type of x.

    Raises:
        TypeError: x is not an array or has a type not listed above, or the config does not belong
            to the implementation.
        ValueError: The last axis is missing, empty or of odd size, or an implementation is unknown.
        NotImplementedError: The implementation that was named cannot serve this call.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    x = checked_array("x", x)
    if x.ndim == 0 or x.shape[-1] == 0 or x.shape[-1] % 2:
        raise ValueError(
            f"x must be [..., gate | up] with a last axis of even size, at least 2, got {x.shape}"
        )
    spec = SwigluSpec(rows=math.prod(x.shape[:-1]), width=x.shape[-1] // 2, dtype=x.dtype)
    return dispatch(
        "swiglu", spec, (x,), implementation=implementation, config=config, table=_TABLE
    )
