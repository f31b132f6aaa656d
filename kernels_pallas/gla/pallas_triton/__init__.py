"""Gated linear attention in Pallas kernels for CUDA GPUs: who is served, and the derivative.

The kernels are in `forward` and `backward`, their tiling in
`config`; README.md derives them.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.gla.pallas_triton import backward as pallas_triton_bwd
from kernels_pallas.gla.pallas_triton import forward as pallas_triton_fwd
from kernels_pallas.gla.pallas_triton.chunk import geometry_of, pad_state, unpad_state
from kernels_pallas.gla.pallas_triton.config import Config, KernelConfig, choose
from kernels_pallas.gla.spec import GlaSpec

MAX_WIDTH = 256
"""Widest keys and values per head: a program holds a chunk of all keys in registers."""


def supports(spec: GlaSpec) -> str | None:
    """Serves bfloat16 and float32 with widths up to MAX_WIDTH."""
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
    return None


def gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H K"],
    initial_state: Float[Array, "B H K V"] | None,
    *,
    config: Config | None = None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """One direction; see `kernels_pallas.gla.api.gla`."""
    call = _Call(spec, config or choose(spec), (spec.reverse,))
    return _attend(call, q, k, v, (log_decay,), initial_state)


def bidirectional_gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay_fwd: Float[Array, "B T H K"],
    log_decay_bwd: Float[Array, "B T H K"],
    *,
    config: Config | None = None,
) -> Float[Array, "B T H V"]:
    """Both directions, summed; see `kernels_pallas.gla.api.bidirectional_gla`."""
    call = _Call(spec, config or choose(spec), (False, True))
    return _attend(call, q, k, v, (log_decay_fwd, log_decay_bwd), None)[0]


class _Call(NamedTuple):
    """What is static: the spec, the tiling, and for each direction whether it is reversed."""

    spec: GlaSpec
    config: Config
    directions: tuple[bool, ...]


class _Residuals(NamedTuple):
    """What the backward pass needs.

    Attributes:
        q: As given.
        k: As given.
        v: As given.
        log_decays: As given.
        initial_state: As given, or None.
        states: Before each chunk [directions, B * H * segments, chunks, K, V]. To compute them
            again was slower than to write and read them.
    """

    q: Any
    k: Any
    v: Any
    log_decays: Any
    initial_state: Any
    states: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    call: _Call, q: Any, k: Any, v: Any, log_decays: tuple[Any, ...], initial_state: Any
) -> tuple[Any, Any]:
    """The output, and the final state where it is wanted."""
    return _run(call, call.config.forward, q, k, v, log_decays, initial_state)[:2]


def _run(
    call: _Call,
    launch: KernelConfig,
    q: Any,
    k: Any,
    v: Any,
    log_decays: tuple[Any, ...],
    initial_state: Any,
    *,
    keeps_states: bool = False,
) -> tuple[Any, Any, Any]:
    spec = call.spec
    initial = None
    if initial_state is not None:
        initial = pad_state(geometry_of(spec, launch), initial_state)
    final = None
    wants_final = spec.return_final_state
    if launch.segments > 1:
        initial, final = pallas_triton_fwd.border_states(
            spec, launch, call.directions, k, v, log_decays, initial, gradient=False
        )
        wants_final = False
    outs, ends, states = pallas_triton_fwd.forward(
        spec,
        launch,
        call.directions,
        q,
        k,
        v,
        log_decays,
        initial,
        wants_final=wants_final,
        keeps_states=keeps_states,
    )
    out = outs[0]
    for other in outs[1:]:
        out = (out.astype(jnp.float32) + other.astype(jnp.float32)).astype(out.dtype)
    ends = ends if wants_final else final
    final_state = None
    if spec.return_final_state and ends is not None:
        final_state = unpad_state(spec, ends[0])
    return out, final_state, states


def _attend_forward(
    call: _Call, q: Any, k: Any, v: Any, log_decays: tuple[Any, ...], initial_state: Any
) -> tuple[tuple[Any, Any], _Residuals]:
    launch = call.config.training
    out, final_state, states = _run(
        call, launch, q, k, v, log_decays, initial_state, keeps_states=True
    )
    return (out, final_state), _Residuals(q, k, v, log_decays, initial_state, states)


def _attend_backward(call: _Call, residuals: _Residuals, grads: tuple[Any, Any]) -> tuple[Any, ...]:
    spec, launch = call.spec, call.config.backward
    q, k, v, log_decays, initial_state, states = residuals
    grad_out, grad_final_state = grads
    grad_out = grad_out.astype(v.dtype)
    has_initial = initial_state is not None
    final = None
    if grad_final_state is not None:
        final = pad_state(geometry_of(spec, launch), grad_final_state)
    grad_ahead: Any = None
    if launch.segments > 1:
        final, grad_ahead = pallas_triton_fwd.border_states(
            spec, launch, call.directions, q, grad_out, log_decays, final, gradient=True
        )
    grad_q, grad_k, grad_v, grad_log_decays, grad_start = pallas_triton_bwd.backward(
        spec,
        launch,
        call.directions,
        q,
        k,
        v,
        log_decays,
        grad_out,
        states,
        final,
        wants_initial=has_initial and launch.segments == 1,
    )
    grad_initial_state = None
    if has_initial:
        start = grad_start if launch.segments == 1 else grad_ahead
        grad_initial_state = unpad_state(spec, start[0]).astype(initial_state.dtype)
    return grad_q, grad_k, grad_v, tuple(grad_log_decays), grad_initial_state


_attend.defvjp(_attend_forward, _attend_backward, optimize_remat=True)
