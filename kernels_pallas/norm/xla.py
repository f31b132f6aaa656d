"""Normalisation in plain XLA: the portable implementation."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
from .spec import NormSpec

PLATFORMS = None

_ACTIVATIONS: dict[str | None, Callable[[jax.Array], jax.Array]] = {
    None: lambda x: x,
    "silu": jax.nn.silu,
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
}


def supports(spec: NormSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: NormSpec,
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"] | None,
    keep: Float[Array, " B"] | None,
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
) -> tuple[Float[Array, "... D"] | None, Float[Array, "... D"]]:
    """Computes `residual_norm` or, without a branch, None and `norm_act`."""
    total = None
    if branch is not None:
        x = total = _add(spec, x, branch, keep)
    wide = x.astype(spec.wide)
    if spec.kind == "layer":
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    y = wide * jax.lax.rsqrt(variance + spec.epsilon) * scale.astype(spec.wide)
    if bias is not None:
        y = y + bias.astype(spec.wide)
    return total, _ACTIVATIONS[spec.activation](y).astype(x.dtype)


def _add(spec: NormSpec, x: Array, branch: Array, keep: Array | None) -> Array:
    wide = branch.astype(spec.wide)
    if keep is not None:
        factor = jax.lax.stop_gradient(keep).astype(spec.wide)
        factor = factor.reshape(-1, *(1,) * (x.ndim - 1))
        wide = jnp.where(factor == 0, 0, wide * factor)
    return (x.astype(spec.wide) + wide).astype(x.dtype)
