"""The public operator: its definition, its argument checks and its implementations."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from . import pallas_mosaic_gpu, pallas_triton, reference, xla
from .spec import checked_spec

_TABLE = implementations(
    {
        "pallas_triton": pallas_triton,
        "pallas_mosaic_gpu": pallas_mosaic_gpu,
        "xla": xla,
        "reference": reference,
    }
)

IMPLEMENTATIONS: tuple[str, ...] = tuple(_TABLE)
"""Names that `implementation=` accepts, best first."""


def linear_swiglu(
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    *,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> Float[Array, "... I"]:
    """Computes `silu(gate) * up` for x @ kernel = [gate | up], where silu(z) = z / (1 + exp(-z)).

    Without differentiation the product is not necessarily written to memory; then it is not rounded
    either. Differentiable in both arrays.

    Args:
        x: Inputs; float32, bfloat16, float16 or float64.
        kernel: Weights [D, 2I], those of the gates in the first half of the columns; type of x.
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.linear_swiglu.IMPLEMENTATIONS`, or several names to try in
            order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        An array of width I, type of x.

    Raises:
        TypeError: An argument is not an array or has a type not listed above, or the config does
            not belong to the implementation.
        ValueError: Shapes do not fit together, or an implementation is unknown.
        NotImplementedError: The implementation that was named cannot serve this call.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    x, kernel = checked_array("x", x), checked_array("kernel", kernel)
    return dispatch(
        "linear_swiglu",
        checked_spec(x, kernel),
        (x, kernel),
        implementation=implementation,
        config=config,
        table=_TABLE,
    )
