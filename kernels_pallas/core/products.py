"""Matrix products of XLA that backward passes of operators share."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def weight_gradient(
    x: Float[Array, "... D"],
    grad: Float[Array, "... E"],
    precision: jax.lax.Precision | None = None,
    dtype: DTypeLike | None = None,
) -> Float[Array, "D E"]:
    """Computes x^T grad over all rows, in `dtype` or the type of x.

    The sum is float32. For weights that are kept in float32, XLA drops the rounding if a conversion
    back to float32 follows.
    """
    rows = tuple(range(x.ndim - 1))
    product = jax.lax.dot_general(
        x, grad, ((rows, rows), ((), ())), precision, preferred_element_type=jnp.float32
    )
    return product.astype(dtype or x.dtype)
