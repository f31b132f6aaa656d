"""Gated linear attention without loops and branches, for translation to other formats.

Within a chunk it is `xla_chunked`'s form for any decay. The states before all chunks come from
log2(chunks) steps, each of which doubles the number of chunks that a state sums over. Programs have
matrix products, pads and slices of static size, and the batch stays a separate axis, so it may be
symbolic. It keeps more in memory for the backward pass than `xla_chunked`.
"""

import functools
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core.device import Device
from .sequences import Restarts
from .spec import GlaSpec
from .xla_chunked import chunking, halved, run_by

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
    return run_by(_scan, spec, q, k, v, log_decays, initial_states, cu_seqlens)


def _scan(
    spec: GlaSpec,
    q: Array,
    k: Array,
    v: Array,
    log_decays: Mapping[bool, Array],
    states: Mapping[bool, Array] | None,
    restarts: Mapping[bool, Restarts] | None,
) -> tuple[Array, list[Array]]:
    """Returns the sum over the directions, and the final state of each.

    The keys of `log_decays`, of initial `states` and of `restarts` are True for the reversed
    direction.
    """
    chunk, chunks = chunking(spec)
    dot = functools.partial(jnp.einsum, precision=spec.dot_precision)

    def split(x: Array) -> Array:
        """Returns the chunks [B, H N, C, width]; a padded token adds and decays nothing."""
        x = jnp.pad(x, ((0, 0), (0, chunks * chunk - spec.tokens), (0, 0), (0, 0)))
        width = x.shape[-1]
        x = x.reshape(spec.batch, chunks, chunk, spec.heads, width).transpose(0, 3, 1, 2, 4)
        return x.reshape(spec.batch, spec.heads * chunks, chunk, width).astype(spec.state_dtype)

    def by_chunk(x: Array) -> Array:
        return x.reshape(spec.batch, spec.heads, chunks, *x.shape[2:])

    q, k, v = spec.scale * split(q), split(k), split(v)
    out, finals = jnp.zeros_like(v), []
    for reverse, log_decay in log_decays.items():
        q_in, k_out, decay, within = halved(dot, q, k, split(log_decay), reverse)
        update = by_chunk(dot("bxck,bxcv->bxkv", k_out, v))
        initial = jnp.zeros_like(update[:, :, 0]) if states is None else states[reverse]
        pass_on = functools.partial(_pass_on, initial=initial.astype(update.dtype), reverse=reverse)
        if restarts is None:
            before, final = pass_on(by_chunk(decay), update)
        else:  # the batch is 1, and chunks are the first axis of what `Restarts` takes

            def scan(decay, update, pass_on=pass_on):
                by_head = (x.swapaxes(0, 1)[None] for x in (decay, update))
                return pass_on(*by_head)[0][0].swapaxes(0, 1)

            first = (x[0].swapaxes(0, 1) for x in (by_chunk(decay), update))
            before, final = restarts[reverse].pass_on(scan, *first)
            before = before.swapaxes(0, 1)[None]
        before = before.reshape(spec.batch, spec.heads * chunks, *before.shape[3:])
        out += dot("bxij,bxjv->bxiv", within, v) + dot("bxck,bxkv->bxcv", q_in, before)
        finals.append(final)
    out = out.reshape(spec.batch, spec.heads, chunks, chunk, spec.value_width)
    out = out.transpose(0, 2, 3, 1, 4)
    out = out.reshape(spec.batch, chunks * chunk, spec.heads, spec.value_width)[:, : spec.tokens]
    return out.astype(spec.dtype), finals


def _pass_on(
    decay: Float[Array, "B H N K"],
    update: Float[Array, "B H N K V"],
    initial: Float[Array, "B H K V"],
    reverse: bool,
) -> tuple[Float[Array, "B H N K V"], Float[Array, "B H K V"]]:
    """Returns the states before each chunk and the final state.

    The initial state is an update that precedes all others. Decays are products of numbers from 0
    to 1, so nothing overflows or cancels.
    """
    chunks = update.shape[2]
    decay, state = decay[..., None], initial[:, :, None]
    parts = (jnp.ones_like(decay[:, :, :1]), decay), (state, update)
    decay, state = (jnp.concatenate(x[::-1] if reverse else x, axis=2) for x in parts)

    def moved(x: Array, by: int) -> Array:
        """Returns what is `by` chunks earlier in the order of the scan, and zeros before."""
        pads = (0, by) if reverse else (by, 0)
        x = jnp.pad(x, ((0, 0), (0, 0), pads, (0, 0), (0, 0)))
        return x[:, :, by:] if reverse else x[:, :, : chunks + 1]

    for level in range(chunks.bit_length()):
        state = state + decay * moved(state, 1 << level)
        decay = decay * moved(decay, 1 << level)
    if reverse:
        return state[:, :, 1:], state[:, :, 0]
    return state[:, :, :-1], state[:, :, -1]
