"""Gated linear attention for one token: generation, and streams that have no end."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.checks import checked_array
from ..core.types import float32_or_wider


def gla_step(
    q: Float[Array, "B H K"],
    k: Float[Array, "B H K"],
    v: Float[Array, "B H V"],
    log_decay: Float[Array, "B H K"],
    state: Float[Array, "B H K V"],
    *,
    scale: float | None = None,
) -> tuple[Float[Array, "B H V"], Float[Array, "B H K V"]]:
    """Computes gated linear attention for the next token.

    Steps over the tokens of a sequence return what `gla` returns for all of them, and the last
    state is its final state. The work per token does not depend on the tokens before, and the state
    is all that is kept of them. XLA computes it on every platform; donate the state to `jax.jit` to
    update it in place.

    Args:
        q: Queries of the token; float32, bfloat16, float16 or float64.
        k: Keys, type of q.
        v: Values, type of q.
        log_decay: Logarithms of the decays that act on the state, in [-inf, 0]; any of these types.
        state: The state before the token: zeros before the first, or the final state of `gla`.
        scale: Factor on the queries, a Python number; K**-0.5 if None.

    Returns:
        The output in the type of v, and the state after the token, float32 (float64 for float64
        inputs).

    Raises:
        TypeError: An argument is not an array, or has another type.
        ValueError: Shapes do not fit together.
    """
    named = {"q": q, "k": k, "v": v, "log_decay": log_decay, "state": state}
    q, k, v, log_decay, state = (checked_array(name, x) for name, x in named.items())
    if q.ndim != 3 or v.ndim != 3:
        raise ValueError(
            f"q and v must have three axes [batch, heads, width], got {q.shape} and {v.shape}: "
            "gla takes several tokens"
        )
    expected = {"k": q.shape, "log_decay": q.shape, "v": (*q.shape[:2], v.shape[2])}
    expected["state"] = (*q.shape, v.shape[2])
    for name, shape in expected.items():
        if jnp.shape(named[name]) != shape:
            raise ValueError(f"{name} must have shape {shape}, got {jnp.shape(named[name])}")
    for name, array in {"k": k, "v": v}.items():
        if array.dtype != q.dtype:
            raise TypeError(f"{name} must have the type of q, {q.dtype}, got {array.dtype}: cast")
    dtype, wide = q.dtype, float32_or_wider(q.dtype)
    scale = q.shape[2] ** -0.5 if scale is None else scale
    q, k, v, log_decay, state = (x.astype(wide) for x in (q, k, v, log_decay, state))
    state = jnp.exp(log_decay)[..., None] * state + k[..., None] * v[..., None, :]
    out = scale * jnp.einsum("bhk,bhkv->bhv", q, state, precision=jax.lax.Precision.HIGHEST)
    return out.astype(dtype), state
