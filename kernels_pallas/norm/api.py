"""The public operators: their definitions, their argument checks and their implementations."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from ..core.types import Dim
from . import pallas_triton, reference, xla
from .spec import ACTIVATIONS, KINDS, NormSpec

_TABLE = implementations({"pallas_triton": pallas_triton, "xla": xla, "reference": reference})

IMPLEMENTATIONS: tuple[str, ...] = tuple(_TABLE)
"""Names that `implementation=` accepts, best first."""


def norm_act(
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None = None,
    *,
    kind: str,
    epsilon: float,
    activation: str | None = None,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> Float[Array, "... D"]:
    """Normalises over the last axis, and may apply an activation.

    With means over the last axis::

        rms:    y = x / sqrt(mean(x^2) + epsilon) * scale + bias
        layer:  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias

    Everything, the activation included, is computed in float32 (float64 for float64) and rounded
    once. Differentiable in every array.

    Args:
        x: float32, bfloat16, float16 or float64.
        scale: Any of these types.
        bias: Any of these types; zero if None.
        kind: "rms" or "layer".
        epsilon: A positive Python number.
        activation: None, "silu" or "gelu" (the exact one).
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.norm.IMPLEMENTATIONS`, or several names to try in order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        y, or the activation of y, in the type of x.

    Raises:
        TypeError: An argument is not an array or has a type not listed above, or the config does
            not belong to the implementation.
        ValueError: Shapes do not fit together, or a name is unknown.
        NotImplementedError: The implementation that was named cannot serve this call.
    """
    x, scale, bias = checked_array("x", x), checked_array("scale", scale), _optional("bias", bias)
    spec = _spec(x, scale, bias, kind, epsilon, activation=activation)
    _, y = dispatch(
        "norm_act",
        spec,
        (x, None, None, scale, bias),
        implementation=implementation,
        config=config,
        table=_TABLE,
    )
    return y


def residual_norm(
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None = None,
    *,
    kind: str,
    epsilon: float,
    keep: Float[Array, " B"] | None = None,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """Computes a residual sum and its normalisation, which the next branch starts from.

    `total = x + branch * keep` is rounded once to the type of x, and
    `y = norm_act(total, scale, bias)`. Differentiable in every array but `keep`, whose gradient is
    zero because it holds random numbers.

    Args:
        x: float32, bfloat16, float16 or float64.
        branch: The array to add, shape and type of x.
        scale: As in `norm_act`.
        bias: As in `norm_act`.
        kind: As in `norm_act`.
        epsilon: As in `norm_act`.
        keep: A factor on the branch for each index of the first axis, such as drop path's 0 or
            1 / (1 - rate); 1 if None. A branch that is dropped by a 0 may have any values, NaN too.
        implementation: As in `norm_act`.
        config: As in `norm_act`.

    Returns:
        total and y.

    Raises:
        TypeError, ValueError, NotImplementedError: As in `norm_act`.
    """
    x, branch, scale = (
        checked_array("x", x),
        checked_array("branch", branch),
        checked_array("scale", scale),
    )
    bias, keep = _optional("bias", bias), _optional("keep", keep)
    if branch.shape != x.shape:
        raise ValueError(f"branch must have the shape of x, {x.shape}, got {branch.shape}")
    if branch.dtype != x.dtype:
        raise TypeError(f"branch must have the type of x, {x.dtype}, got {branch.dtype}: cast")
    if keep is not None and (x.ndim < 2 or keep.shape != x.shape[:1]):
        raise ValueError(
            "keep must have one number for each index of the first of at least two axes of x, "
            f"whose shape is {x.shape}; got shape {keep.shape}"
        )
    images = 0 if keep is None else x.shape[0]
    spec = _spec(x, scale, bias, kind, epsilon, residual=True, images=images)
    return dispatch(
        "residual_norm",
        spec,
        (x, branch, keep, scale, bias),
        implementation=implementation,
        config=config,
        table=_TABLE,
    )


def _optional(name: str, value: Any) -> jax.Array | None:
    return None if value is None else checked_array(name, value)


def _spec(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array | None,
    kind: Any,
    epsilon: Any,
    *,
    activation: Any = None,
    residual: bool = False,
    images: Dim = 0,
) -> NormSpec:
    if x.ndim == 0 or x.shape[-1] == 0:
        raise ValueError(f"x must have at least one channel in its last axis, got {x.shape}")
    width = x.shape[-1]
    for name, array in {"scale": scale, "bias": bias}.items():
        if array is not None and array.shape != (width,):
            raise ValueError(
                f"{name} must have x's channels as only axis, ({width},), got {array.shape}"
            )
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {KINDS}, got {kind!r}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {ACTIVATIONS}, got {activation!r}")
    if not isinstance(epsilon, numbers.Real):
        raise TypeError(f"epsilon must be a Python number, got {type(epsilon).__name__}")
    if not 0 < float(epsilon) < math.inf:
        raise ValueError(f"epsilon must be positive, got {epsilon}: a row of zeros has no scale")
    return NormSpec(
        rows=math.prod(x.shape[:-1]),
        width=width,
        dtype=x.dtype,
        kind=kind,
        epsilon=float(epsilon),
        activation=activation,
        residual=residual,
        images=images,
    )
