"""Activations and their derivatives inside a kernel, in float32."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from ...core import triton
from ...core.types import Block

# P(Z > |x|) of a standard normal Z is exp(-x^2 / 2) (a_1 k + a_2 k^2 + ...), k = 1 / (1 + c |x|).
# c and the a_i were fitted for the smallest relative error for |x| up to 14. It is 9e-8 for float32
# results. For results that are rounded to bfloat16, whose steps are 4e-3, it is 3e-5: fewer terms
# take less time.
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


def activate(name: str | None, x: Block, dtype: np.dtype) -> Block:
    """Computes the activation of x, float32, for results that are rounded to `dtype`."""
    if name is None:
        return x
    if name == "silu":
        return x * triton.sigmoid(x)
    tail, _ = _normal_tail(x, dtype)
    return jnp.maximum(x, 0.0) - jnp.abs(x) * tail


def activation_slope(name: str, x: Block, dtype: np.dtype) -> Block:
    """Computes the derivative of `activate` at x."""
    if name == "silu":
        sigmoid = triton.sigmoid(x)
        return sigmoid * (1.0 + x * (1.0 - sigmoid))
    tail, bell = _normal_tail(x, dtype)
    return jnp.where(x > 0.0, 1.0 - tail, tail) + x * (bell * (1 / math.sqrt(2 * math.pi)))


def _normal_tail(x: Block, dtype: np.dtype) -> tuple[Block, Block]:
    """Returns P(Z > |x|), and exp(-x^2 / 2)."""
    c, coefficients = _TAIL[dtype.name]
    k = triton.reciprocal(1.0 + c * jnp.abs(x))
    polynomial: Any = coefficients[-1]
    for a in coefficients[-2::-1]:
        polynomial = polynomial * k + a
    bell = triton.exp2(x * (x * (-0.5 * triton.LOG2_E)))
    return polynomial * k * bell, bell
