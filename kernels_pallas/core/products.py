"""Matrix products of XLA that operators' backward passes share."""

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
    """x^T grad over all rows, in `dtype` or the type of x; float32 until the sum is complete.

    Weights kept in float32 get it so: XLA drops the rounding where a conversion back follows.
    """
    rows = tuple(range(x.ndim - 1))
    product = jax.lax.dot_general(
        x, grad, ((rows, rows), ((), ())), precision, preferred_element_type=jnp.float32
    )
    return product.astype(dtype or x.dtype)
