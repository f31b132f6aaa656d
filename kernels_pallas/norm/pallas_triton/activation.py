"""Activations and their derivatives inside a kernel, in float32."""

import functools
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from kernels_pallas.core import pallas_compat

# P(Z > |x|) of a standard normal Z is exp(-x^2 / 2) (a_1 k + a_2 k^2 + ...), k = 1 / (1 + c |x|).
# Here are c and the a_i, fitted for the least relative error for |x| up to 14: 9e-8 where results
# are float32; where they are rounded to bfloat16, whose steps are 4e-3, 3e-5 takes less time.
_TAIL = {
    "float32": (
        0.3045953180718548,
        (
            0.12147589613233402,
            0.12234592292613061,
            0.10302270461980861,
            0.12203100391492042,
            -0.04003991709681275,
            0.18832310706923766,
            -0.15392321878866327,
            0.036764545910580676,
        ),
    ),
    "bfloat16": (
        0.37650538343181095,
        (
            0.14968795712278837,
            0.15800640999721496,
            0.08528642147550922,
            0.19797011689780647,
            -0.0909651104378798,
        ),
    ),
}


def activate(name: str | None, x: Any, dtype: np.dtype, *, interpreting: bool) -> Any:
    """The activation of x, float32, for results that are rounded to `dtype`."""
    if name is None:
        return x
    if name == "silu":
        return x * pallas_compat.sigmoid(x, interpreting=interpreting)
    tail, _ = _normal_tail(x, dtype, interpreting)
    return jnp.maximum(x, 0.0) - jnp.abs(x) * tail


def activation_slope(name: str | None, x: Any, dtype: np.dtype, *, interpreting: bool) -> Any:
    """The derivative of `activate` at x."""
    if name is None:
        return 1.0
    if name == "silu":
        sigmoid = pallas_compat.sigmoid(x, interpreting=interpreting)
        return sigmoid * (1.0 + x * (1.0 - sigmoid))
    tail, bell = _normal_tail(x, dtype, interpreting)
    return jnp.where(x > 0.0, 1.0 - tail, tail) + x * (bell * (1 / math.sqrt(2 * math.pi)))


def _normal_tail(x: Any, dtype: np.dtype, interpreting: bool) -> tuple[Any, Any]:
    """P(Z > |x|), and exp(-x^2 / 2)."""
    c, coefficients = _TAIL[dtype.name]
    k = pallas_compat.reciprocal(1.0 + c * jnp.abs(x), interpreting=interpreting)
    polynomial = functools.reduce(lambda so_far, a: so_far * k + a, coefficients[::-1])
    bell = pallas_compat.exp2(x * (x * (-0.5 * pallas_compat.LOG2_E)), interpreting=interpreting)
    return polynomial * k * bell, bell
