"""Gated linear attention token by token: the definition every implementation is compared with.

Source: "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024, eq. 3;
two directions as in "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
AAAI 2025.
"""

import functools
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.device import Device
from kernels_pallas.gla.exchange import arriving_states
from kernels_pallas.gla.spec import GlaSpec

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
    initial_state: Float[Array, "B H K V"] | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """Computes the output and the final state; see `kernels_pallas.gla.api`."""
    directions = (False, True) if spec.bidirectional else (spec.reverse,)
    scans = [
        functools.partial(_scan, spec, q, k, v, log_decay, reverse=reverse)
        for log_decay, reverse in zip(log_decays, directions, strict=True)
    ]
    initial_states: Iterable[Array | None] = [initial_state] * len(scans)
    if spec.exchange is not None:
        own = [scan(None)[1] for scan in scans]
        initial_states = arriving_states(spec.exchange, own, log_decays, directions)
    results = [scan(state) for scan, state in zip(scans, initial_states, strict=True)]
    out = functools.reduce(jnp.add, [out for out, _ in results])
    return out.astype(spec.dtype), results[0][1] if spec.return_final_state else None


def _scan(
    spec: GlaSpec,
    q: Array,
    k: Array,
    v: Array,
    log_decay: Array,
    state: Array | None,
    reverse: bool,
) -> tuple[Array, Array]:
    """Scans in one direction; returns the output and the final state in `spec.state_dtype`."""

    def step(state, token):
        q, k, v, log_decay = token  # [B, H, K], [B, H, K], [B, H, V], [B, H, K]
        state = jnp.exp(log_decay)[..., None] * state + k[..., None] * v[..., None, :]
        out = jnp.einsum("bhk,bhkv->bhv", spec.scale * q, state, precision="highest")
        return state, out

    tokens = [jnp.moveaxis(x.astype(spec.state_dtype), 1, 0) for x in (q, k, v, log_decay)]
    if state is None:
        shape = (spec.batch, spec.heads, spec.key_width, spec.value_width)
        state = jnp.zeros(shape, spec.state_dtype)
    final, out = jax.lax.scan(step, state.astype(spec.state_dtype), tokens, reverse=reverse)
    return jnp.moveaxis(out, 0, 1), final
