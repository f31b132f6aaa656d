"""The public operator: its definition, its argument checks and its implementations."""

from collections.abc import Sequence
from typing import Any

from jaxtyping import Array, Float

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from ..linear_swiglu.spec import checked_spec
from . import pallas_mosaic_gpu, pallas_triton, reference, xla
from .spec import SwigluMlpSpec

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


def swiglu_mlp(
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    down_kernel: Float[Array, "I O"],
    *,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> Float[Array, "... O"]:
    """Computes `(silu(gate) * up) @ down_kernel` for x @ kernel = [gate | up].

    Here silu(z) = z / (1 + exp(-z)). Differentiable in all arrays. On CUDA GPUs the backward pass
    gets x, x @ kernel and the weights. Without differentiation x @ kernel is neither written to
    memory nor rounded.

    Args:
        x: Inputs; float32, bfloat16, float16 or float64.
        kernel: Weights [D, 2I], those of the gates in the first half of the columns; type of x.
        down_kernel: Weights of the second linear map; type of x.
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.swiglu_mlp.IMPLEMENTATIONS`, or several names to try in order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        An array as wide as down_kernel, type of x.

    Raises:
        TypeError: An argument is not an array or has a type not listed above, or the config does
            not belong to the implementation.
        ValueError: Shapes do not fit together, or an implementation is unknown.
        NotImplementedError: The implementation that was named cannot serve this call.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    x, kernel, down_kernel = (
        checked_array(name, value)
        for name, value in (("x", x), ("kernel", kernel), ("down_kernel", down_kernel))
    )
    first = checked_spec(x, kernel)
    if down_kernel.dtype != x.dtype:
        raise TypeError(
            f"down_kernel must have the type of x, {x.dtype}, got {down_kernel.dtype}: cast"
        )
    shape = down_kernel.shape
    if down_kernel.ndim != 2 or shape[0] != first.width or shape[1] == 0:
        raise ValueError(
            f"down_kernel must be [I, outputs] for the I = {first.width} of kernel [D, 2I], "
            f"got {shape}"
        )
    spec = SwigluMlpSpec(first.rows, first.features, first.width, shape[1], x.dtype)
    return dispatch(
        "swiglu_mlp",
        spec,
        (x, kernel, down_kernel),
        implementation=implementation,
        config=config,
        table=_TABLE,
    )
