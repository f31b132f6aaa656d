"""Gated linear attention in Pallas kernels for CUDA GPUs: calls served, and the derivative.

`scan` runs the kernels, `config` has their tilings, and README.md derives them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ...core import triton
from ...core.device import Device
from ..sequences import borders
from ..spec import GlaSpec
from . import scan
from .config import (
    TUNED_AS,
    Config,
    KernelConfig,
    candidates,
    choose,
    heuristic,
)

__all__ = [
    "PLATFORMS",
    "TUNED_AS",
    "Config",
    "candidates",
    "heuristic",
    "run",
    "supports",
]

PLATFORMS = triton.PLATFORMS

MAX_WIDTH = 256
"""Largest key or value width per head: a program holds a chunk of all keys in registers."""


def supports(spec: GlaSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served, or None."""
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"q, k and v must be bfloat16 or float32, got {spec.dtype}"
    if spec.decay_dtype not in (jnp.bfloat16, jnp.float32):
        return f"log-decays must be bfloat16 or float32, got {spec.decay_dtype}"
    if spec.dtype == jnp.float32 and spec.decay_dtype != jnp.float32:
        return "float32 q, k and v need float32 log-decays"
    if max(spec.key_width, spec.value_width) > MAX_WIDTH:
        return f"key and value width must be at most {MAX_WIDTH}"
    if spec.batch == 0:
        return "there is nothing to launch for an empty batch"
    return triton.unsupported(device)


def run(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decays: tuple[Float[Array, "B T H K"], ...],
    initial_states: tuple[Float[Array, "S H K V"], ...] | None,
    cu_seqlens: Int[Array, " M"] | None = None,
    *,
    config: Config | None = None,
) -> tuple[Float[Array, "B T H V"], tuple[Float[Array, "S H K V"], ...] | None]:
    """Computes the output and the final state of each direction; see `kernels_pallas.gla.api`."""
    call = _Call(spec, config or choose(spec))
    starts = None if cu_seqlens is None else borders(cu_seqlens, spec.tokens)
    return _attend(call, scan.ScanInputs(q, k, v, log_decays), initial_states, starts)


class _Call(NamedTuple):
    """Static arguments of a call."""

    spec: GlaSpec
    config: Config


_States = tuple[Array, ...] | None
"""A state [B, H, K, V], or [N, H, K, V] for N sequences in a row, of each direction, or None."""


class _Residuals(NamedTuple):
    """Arrays that the backward pass reads.

    Attributes:
        inputs: As given.
        initial_states: As given, or None.
        borders: First token of each sequence, and T, or None if rows are sequences.
        chunk_states: States before each chunk. Recomputing them was slower than storing them.
    """

    inputs: scan.ScanInputs
    initial_states: _States
    borders: Array | None
    chunk_states: Array


_Result = tuple[Array, _States]
"""The output [B, T, H, V], and the final states if the call returns them."""


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    call: _Call, inputs: scan.ScanInputs, initial_states: _States, borders: Array | None
) -> _Result:
    config = call.config.forward
    return _run(call, config, inputs, initial_states, borders, chunk_states=False)[0]


def _run(
    call: _Call,
    config: KernelConfig,
    inputs: scan.ScanInputs,
    initial_states: _States,
    borders: Array | None,
    *,
    chunk_states: bool,
) -> tuple[_Result, Array | None]:
    """Returns the result, and the states before each chunk if asked for."""
    results = scan.forward(
        call.spec, config, inputs, initial_states, borders, chunk_states=chunk_states
    )
    out = results.out[0]
    for other in results.out[1:]:
        out = (out.astype(jnp.float32) + other.astype(jnp.float32)).astype(out.dtype)
    return (out, results.final_states), results.chunk_states


def _attend_forward(
    call: _Call, inputs: scan.ScanInputs, initial_states: _States, borders: Array | None
) -> tuple[_Result, _Residuals]:
    config = call.config.training
    result, states = _run(call, config, inputs, initial_states, borders, chunk_states=True)
    assert states is not None
    return result, _Residuals(inputs, initial_states, borders, states)


def _attend_backward(
    call: _Call, residuals: _Residuals, grads: _Result
) -> tuple[scan.ScanInputs, _States, None]:
    inputs, initial_states, borders, chunk_states = residuals
    grad_out, grad_final_states = grads
    grad_inputs, grad_states = scan.backward(
        call.spec,
        call.config.backward,
        inputs,
        grad_out.astype(inputs.v.dtype),
        grad_final_states,
        chunk_states,
        borders,
    )
    if initial_states is not None and grad_states is not None:
        grad_states = tuple(
            grad.astype(state.dtype)
            for grad, state in zip(grad_states, initial_states, strict=True)
        )
    return grad_inputs, grad_states, None


_attend.defvjp(_attend_forward, _attend_backward, optimize_remat=True)
