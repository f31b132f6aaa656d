"""Normalisation in Pallas kernels for CUDA GPUs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.config import choose
from ...core.device import Device
from ..spec import NormSpec
from .config import Config, candidates, heuristic
from .kernels import backward, forward

__all__ = ["PLATFORMS", "TUNED_AS", "Config", "candidates", "heuristic", "run", "supports"]

PLATFORMS = triton.PLATFORMS
TUNED_AS = "norm.pallas_triton"

_MAX_WIDTH = 8192  # a program holds whole rows in registers


def supports(spec: NormSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served.

    Maps must be bfloat16 or float32, of at most 8192 channels.
    """
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"maps must be bfloat16 or float32, got {spec.dtype}"
    if spec.width > _MAX_WIDTH:
        return f"there must be at most {_MAX_WIDTH} channels"
    if spec.rows > triton.MAX_ROWS:
        return f"there must be at most {triton.MAX_ROWS} vectors to normalise"
    if spec.rows == 0:
        return "there is nothing to launch for an empty map"
    return triton.unsupported(device)


def run(
    spec: NormSpec,
    x: Float[Array, "... D"],
    branch: Float[Array, "... D"] | None,
    keep: Float[Array, " B"] | None,
    scale: Float[Array, " D"],
    bias: Float[Array, " D"] | None,
    *,
    config: Config | None = None,
) -> tuple[Float[Array, "... D"] | None, Float[Array, "... D"]]:
    """Computes `residual_norm` or, without a branch, None and `norm_act`."""
    call = _Call(spec, config or choose(TUNED_AS, Config, heuristic, spec))
    rows = (spec.rows, spec.width)
    maps = (None if m is None else m.reshape(rows) for m in (x, branch))
    vectors = (None if v is None else v.astype(jnp.float32) for v in (keep, scale, bias))
    total, y = _normalize(call, *maps, *vectors)
    return None if total is None else total.reshape(x.shape), y.reshape(x.shape)


class _Call(NamedTuple):
    """The static arguments."""

    spec: NormSpec
    config: Config


class _Residuals(NamedTuple):
    """Arrays for the backward pass. It recomputes the statistics, because it holds whole rows.

    Attributes:
        x: The array that was normalised: x, or its sum with the branch.
        keep: As given, or None.
        scale: As given.
        bias: As given, or None.
    """

    x: Array
    keep: Array | None
    scale: Array
    bias: Array | None


_Result = tuple[Array | None, Array]  # the sum, None without a branch, and its normalisation


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _normalize(
    call: _Call,
    x: Array,
    branch: Array | None,
    keep: Array | None,
    scale: Array,
    bias: Array | None,
) -> _Result:
    return forward(call.spec, call.config.forward, x, branch, keep, scale, bias)


def _normalize_forward(
    call: _Call,
    x: Array,
    branch: Array | None,
    keep: Array | None,
    scale: Array,
    bias: Array | None,
) -> tuple[_Result, _Residuals]:
    total, y = forward(call.spec, call.config.forward, x, branch, keep, scale, bias)
    return (total, y), _Residuals(x if total is None else total, keep, scale, bias)


def _normalize_backward(
    call: _Call, residuals: _Residuals, grads: _Result
) -> tuple[Array | None, ...]:
    grad_x, grad_branch, grad_scale, grad_bias = backward(
        call.spec, call.config.backward, *residuals, *grads
    )
    grad_keep = None if residuals.keep is None else jnp.zeros_like(residuals.keep)
    return grad_x, grad_branch if call.spec.residual else None, grad_keep, grad_scale, grad_bias


_normalize.defvjp(_normalize_forward, _normalize_backward, optimize_remat=True)
