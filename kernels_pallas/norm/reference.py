"""Normalisation by its formula: all implementations are compared with this one."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..core.device import Device
from .spec import NormSpec

PLATFORMS = None


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
        added = branch.astype(spec.wide)
        if keep is not None:
            factor = jax.lax.stop_gradient(keep).astype(spec.wide)
            factor = jnp.expand_dims(factor, tuple(range(1, x.ndim)))
            # Zero, and not the product with zero, which may be NaN.
            added = jnp.where(factor == 0, 0, added * factor)
        x = total = (x.astype(spec.wide) + added).astype(x.dtype)
    y = x.astype(spec.wide)
    if spec.kind == "layer":
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y / jnp.sqrt(jnp.mean(y**2, axis=-1, keepdims=True) + spec.epsilon)
    y = y * scale.astype(spec.wide)
    if bias is not None:
        y = y + bias.astype(spec.wide)
    if spec.activation == "silu":
        y = y * jax.nn.sigmoid(y)
    if spec.activation == "gelu":
        y = y * (1 + jax.lax.erf(y / math.sqrt(2))) / 2
    return total, y.astype(x.dtype)
