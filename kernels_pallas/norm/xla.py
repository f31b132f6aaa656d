"""Normalisation as plain JAX: the definition, and what serves every call on every platform."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.norm.spec import NormSpec

_ACTIVATIONS: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda x: x,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


def supports(spec: NormSpec) -> str | None:
    """Serves every call."""
    return None


def norm_act(
    spec: NormSpec,
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
) -> Float[Array, "... D"]:
    """See `kernels_pallas.norm.api.norm_act`."""
    wide = x.astype(spec.wide)
    if spec.kind == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(variance + spec.epsilon) * scale.astype(spec.wide)
    if bias is not None:
        y = y + bias.astype(spec.wide)
    return _ACTIVATIONS[spec.activation](y).astype(x.dtype)


def residual_norm(
    spec: NormSpec,
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"],
    keep: Float[Array, " B"] | None,
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """See `kernels_pallas.norm.api.residual_norm`."""
    wide = branch.astype(spec.wide)
    if keep is not None:
        factor = jax.lax.stop_gradient(keep).astype(spec.wide)
        factor = factor.reshape(-1, *(1,) * (x.ndim - 1))
        wide = jnp.where(factor == 0, 0, wide * factor)
    total = (x.astype(spec.wide) + wide).astype(x.dtype)
    return total, norm_act(spec, total, scale, bias)
