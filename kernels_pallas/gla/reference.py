"""Gated linear attention token by token: the definition every implementation is compared with.

Source: "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024, eq. 3;
two directions as in "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
AAAI 2025.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core.device import Device
from .exchange import arriving_states
from .sequences import borders, sequence_of, with_rest
from .spec import GlaSpec

PLATFORMS = None


def supports(spec: GlaSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decays: tuple[Float[Array, "B T H K"], ...],
    initial_states: tuple[Float[Array, "S H K V"], ...] | None,
    cu_seqlens: Int[Array, " M"] | None = None,
) -> tuple[Float[Array, "B T H V"], tuple[Float[Array, "S H K V"], ...] | None]:
    """Computes the output and the final state of each direction; see `kernels_pallas.gla.api`."""
    scans = [
        functools.partial(_scan, spec, q, k, v, log_decay, reverse, cu_seqlens)
        for log_decay, reverse in zip(log_decays, spec.directions, strict=True)
    ]
    states: Iterable[Array | None] = initial_states or [None] * len(scans)
    if spec.exchange is not None:
        own = [scan(None)[1] for scan in scans]
        states = arriving_states(spec.exchange, own, log_decays, spec.directions)
    results = [scan(state) for scan, state in zip(scans, states, strict=True)]
    out = functools.reduce(jnp.add, [out for out, _ in results])
    finals = tuple(final for _, final in results) if spec.return_final_state else None
    return out.astype(spec.dtype), finals


def _scan(
    spec: GlaSpec,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    reverse: bool,
    cu_seqlens: Array | None,
    state: Array | None,
) -> tuple[Array, Array]:
    """Scans in one direction; returns the output and the final states in `spec.state_dtype`."""

    def step(state, token):
        q, k, v, log_decay, *start = token  # [B, H, K], [B, H, K], [B, H, V], [B, H, K]
        if start:
            fresh, number = start
            state = jnp.where(fresh, initial[number], state)
        state = jnp.exp(log_decay)[..., None] * state + k[..., None] * v[..., None, :]
        out = jnp.einsum("bhk,bhkv->bhv", spec.scale * q, state, precision="highest")
        return state, (out, state if start and spec.return_final_state else None)

    tokens = [jnp.moveaxis(x.astype(spec.state_dtype), 1, 0) for x in (q, k, v, log_decay)]
    if state is None:
        state = jnp.zeros(spec.state_shape, spec.state_dtype)
    initial = state.astype(spec.state_dtype)
    if cu_seqlens is None:
        final, (out, _) = jax.lax.scan(step, initial, tokens, reverse=reverse)
        return jnp.moveaxis(out, 0, 1), final

    starts = borders(cu_seqlens, spec.tokens)
    number = sequence_of(starts[:-1], spec.tokens)
    first, last = (starts[1:] - 1, starts[:-1]) if reverse else (starts[:-1], starts[1:] - 1)
    tokens += [jnp.arange(spec.tokens) == first[number], number]
    initial = with_rest(initial)
    _, (out, states) = jax.lax.scan(step, jnp.zeros_like(initial[:1]), tokens, reverse=reverse)
    final = initial[:-1]
    if spec.return_final_state:
        empty = (starts[:-1] == starts[1:])[:-1, None, None, None]
        final = jnp.where(empty, final, states[:, 0][last[:-1]])
    return jnp.moveaxis(out, 0, 1), final
