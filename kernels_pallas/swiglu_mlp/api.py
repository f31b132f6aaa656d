"""The public operator: what it means, what it accepts, and who computes it."""

import math
from collections.abc import Sequence

from jaxtyping import Array, Float

from kernels_pallas.core.checks import checked_array
from kernels_pallas.core.dispatch import compiled, dispatch
from kernels_pallas.swiglu_mlp import pallas_triton, reference, xla
from kernels_pallas.swiglu_mlp.spec import SwigluMlpSpec

# Best first: `implementation=None` takes the first that serves the call on the platform.
_MODULES = {"pallas_triton": pallas_triton, "xla": xla, "reference": reference}

IMPLEMENTATIONS: tuple[str, ...] = tuple(_MODULES)
"""Names accepted by `implementation=`, best first."""

_TABLE = compiled(_MODULES, "swiglu_mlp")


def swiglu_mlp(
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    down_kernel: Float[Array, "I O"],
    *,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "... O"]:
    """`(silu(gate) * y) @ down_kernel` for x @ kernel = [gate | y]; silu(z) = z / (1 + exp(-z)).

    Differentiable in all arrays. On CUDA GPUs the backward pass is given x, x @ kernel and the
    weights; without differentiation x @ kernel is not written to memory, nor rounded.

    Args:
        x: Inputs; float32, bfloat16, float16 or float64.
        kernel: Weights [D, 2I], those of the gates in the first half of the columns; type of x.
        down_kernel: Weights of the second linear map; type of x.
        implementation: None for the best one on the platform the program is lowered for, a name
            out of `kernels_pallas.swiglu_mlp.IMPLEMENTATIONS`, or several names to try in order.

    Returns:
        An array as wide as down_kernel, type of x.

    Raises:
        TypeError: An argument is not an array, or of a type not listed above.
        ValueError: Shapes do not fit together, or an implementation is unknown.
        NotImplementedError: The implementation asked for cannot serve this call.

    Source: Shazeer, "GLU Variants Improve Transformer", 2020.
    """
    x, kernel, down_kernel = (
        checked_array(name, value)
        for name, value in (("x", x), ("kernel", kernel), ("down_kernel", down_kernel))
    )
    for name, weights in (("kernel", kernel), ("down_kernel", down_kernel)):
        if weights.dtype != x.dtype:
            raise TypeError(f"{name} must have the type of x, {x.dtype}, got {weights.dtype}: cast")
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
    width = kernel.shape[1] // 2
    if down_kernel.ndim != 2 or down_kernel.shape[0] != width or down_kernel.shape[1] == 0:
        raise ValueError(
            f"down_kernel must be [I, outputs] for the I = {width} of kernel [D, 2I], "
            f"got {down_kernel.shape}"
        )
    spec = SwigluMlpSpec(
        rows=math.prod(x.shape[:-1]),
        features=x.shape[-1],
        width=width,
        out_features=down_kernel.shape[1],
        dtype=x.dtype,
    )
    return dispatch(
        "swiglu_mlp",
        spec,
        (x, kernel, down_kernel),
        implementation=implementation,
        table=_TABLE,
        order=IMPLEMENTATIONS,
    )
