"""Normalisation in Pallas kernels for CUDA GPUs: who is served, and the derivative.

The kernels are in `kernels`, their tiling in `config`.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.pallas_compat import MAX_ROWS
from kernels_pallas.norm.pallas_triton import kernels as pallas_triton_kernels
from kernels_pallas.norm.pallas_triton.config import Config, heuristic
from kernels_pallas.norm.spec import NormSpec

MAX_WIDTH = 8192
"""Most channels: a program holds whole rows in registers."""


def supports(spec: NormSpec) -> str | None:
    """Serves bfloat16 and float32 with up to MAX_WIDTH channels."""
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"maps must be bfloat16 or float32, got {spec.dtype}"
    if spec.width > MAX_WIDTH:
        return f"there must be at most {MAX_WIDTH} channels"
    if spec.rows > MAX_ROWS:
        return f"there must be at most {MAX_ROWS} vectors to normalise"
    if spec.rows == 0:
        return "there is nothing to launch for an empty map"
    return None


def norm_act(
    spec: NormSpec,
    x: Float[Array, "... D"],
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
    *,
    config: Config | None = None,
) -> Float[Array, "... D"]:
    """See `kernels_pallas.norm.api.norm_act`."""
    return _on_rows(spec, config, x, None, None, scale, bias)[1].reshape(x.shape)


def residual_norm(
    spec: NormSpec,
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"],
    keep: Float[Array, " B"] | None,
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
    *,
    config: Config | None = None,
) -> tuple[Float[Array, "... D"], Float[Array, "... D"]]:
    """See `kernels_pallas.norm.api.residual_norm`."""
    total, y = _on_rows(spec, config, x, branch, keep, scale, bias)
    return total.reshape(x.shape), y.reshape(x.shape)


def _on_rows(spec: NormSpec, config: Config | None, x: Any, branch: Any, *vectors: Any) -> Any:
    """Maps become [N, D]; vectors (keep, scale, bias) float32."""
    x, branch = (None if m is None else m.reshape(spec.rows, spec.width) for m in (x, branch))
    wide = (None if v is None else v.astype(jnp.float32) for v in vectors)
    return _normalize(_Call(spec, config or heuristic(spec)), x, branch, *wide)


class _Call(NamedTuple):
    """What is static."""

    spec: NormSpec
    config: Config


class _Residuals(NamedTuple):
    """What the backward pass needs; the statistics it computes again, as it holds whole rows.

    Attributes:
        x: What was normalised: x, or its sum with the branch.
        keep: As given, or None.
        scale: As given.
        bias: As given, or None.
    """

    x: Any
    keep: Any
    scale: Any
    bias: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(
    call: _Call, x: Any, branch: Any, keep: Any, scale: Any, bias: Any
) -> tuple[Any, Any]:
    """The sum, None without a branch, and the result."""
    return pallas_triton_kernels.forward(
        call.spec, call.config.forward, x, branch, keep, scale, bias
    )


def _normalize_forward(
    call: _Call, x: Any, branch: Any, keep: Any, scale: Any, bias: Any
) -> tuple[tuple[Any, Any], _Residuals]:
    total, y = pallas_triton_kernels.forward(
        call.spec, call.config.forward, x, branch, keep, scale, bias
    )
    return (total, y), _Residuals(x if total is None else total, keep, scale, bias)


def _normalize_backward(
    call: _Call, residuals: _Residuals, grads: tuple[Any, Any]
) -> tuple[Any, ...]:
    grad_x, grad_branch, grad_scale, grad_bias = pallas_triton_kernels.backward(
        call.spec, call.config.backward, *residuals, *grads
    )
    grad_keep = None if residuals.keep is None else jnp.zeros_like(residuals.keep)
    return grad_x, grad_branch if call.spec.residual else None, grad_keep, grad_scale, grad_bias


_normalize.defvjp(_normalize_forward, _normalize_backward, optimize_remat=True)
