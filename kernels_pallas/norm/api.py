"""The public operators: what they mean, what they accept, and who computes them."""

import math
import numbers
from collections.abc import Sequence
from typing import Any

import jax
from jaxtyping import Array, Float

from kernels_pallas.core.checks import checked_array
from kernels_pallas.core.dispatch import compiled, dispatch
from kernels_pallas.norm import pallas_triton, xla
from kernels_pallas.norm.spec import ACTIVATIONS, KINDS, NormSpec

# Best first: `implementation=None` takes the first that serves the call on the platform.
_MODULES = {"pallas_triton": pallas_triton, "xla": xla}

IMPLEMENTATIONS: tuple[str, ...] = tuple(_MODULES)
"""Names accepted by `implementation=`, best first."""

_NORM_ACT = compiled(_MODULES, "norm_act")
_RESIDUAL_NORM = compiled(_MODULES, "residual_norm")


def norm_act(
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None = None,
    *,
    kind: str,
    epsilon: float,
    activation: str | None = None,
    implementation: str | Sequence[str] | None = None,
) -> Float[Array, "... D"]:
    """Normalisation over the last axis, then perhaps an activation.

    With means over the last axis::

        rms:    y = x / sqrt(mean(x^2) + epsilon) * scale + bias
        layer:  y = (x - mean(x)) / sqrt(mean((x - mean(x))^2) + epsilon) * scale + bias

    All of it, the activation too, is float32 (float64 for float64) and rounded once. Differentiable
    in every array.

    Args:
        x: float32, bfloat16, float16 or float64.
        scale: Any of these types.
        bias: Any of these types; zero if None.
        kind: "rms" or "layer".
        epsilon: A positive Python number.
        activation: None, "silu" or "gelu" (the exact one).
        implementation: None for the best one on the platform the program is lowered for, a name
            out of `kernels_pallas.norm.IMPLEMENTATIONS`, or several names to try in order.

    Returns:
        y, or the activation of y, in the type of x.

    Raises:
        TypeError: An argument is not an array, or of a type not listed above.
        ValueError: Shapes do not fit together, or a name is unknown.
        NotImplementedError: The implementation asked for cannot serve this call.
    """
    x, scale, bias = checked_array("x", x), checked_array("scale", scale), _optional("bias", bias)
    spec = _spec(x, scale, bias, kind, epsilon, activation=activation)
    return dispatch(
        "norm_act",
        spec,
        (x, scale, bias),
        implementation=implementation,
        table=_NORM_ACT,
        order=IMPLEMENTATIONS,
    )


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
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """A residual sum and its normalisation, which the next branch starts from.

    `total = x + branch * keep`, rounded once to the type of x, and
    `y = norm_act(total, scale, bias)`. Differentiable in every array but `keep`, whose gradient is
    zero: it holds random numbers.

    Args:
        x: float32, bfloat16, float16 or float64.
        branch: What to add, shape and type of x.
        scale: As in `norm_act`.
        bias: As in `norm_act`.
        kind: As in `norm_act`.
        epsilon: As in `norm_act`.
        keep: A factor on the branch for each index of the first axis, such as drop path's 0 or
            1 / (1 - rate); 1 if None. What is dropped by a 0 may be anything, NaN too.
        implementation: As in `norm_act`.

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
        table=_RESIDUAL_NORM,
        order=IMPLEMENTATIONS,
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
    images: int = 0,
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
