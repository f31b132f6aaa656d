"""Gated linear attention by chunks of tokens in plain XLA: fast everywhere, right for any decay.

A chunk's work is a few matrix products; states pass from chunk to chunk. README.md derives it and
tells what was measured. Inside a chunk there are two ways to the same numbers: `_factored`, one
product, where all decays of a segment are mild; `_merged`, for any decay in [-inf, 0].
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.gla.spec import GlaSpec

# Tokens per chunk, a power of two: more means fewer states but wider score matrices.
_CHUNK = 32
# Mildest log-decay a token may have for `_factored`: with 32 tokens no factor exceeds exp(16), and
# the gradient of a log-decay stays well above the rounding of the terms that cancel in it.
_MILD = -1.0
# On CPU, elements of q per segment: a segment's arrays should stay in a core's cache.
_CPU_SEGMENT = 1 << 15


def supports(spec: GlaSpec) -> str | None:
    """Serves every call."""
    return None


def gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H K"],
    initial_state: Float[Array, "B H K V"] | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """One direction; see `kernels_pallas.gla.api.gla`."""
    run = functools.partial(_scan, spec, reverse=spec.reverse)
    out, state = _by_platform(run, q, k, v, log_decay, initial_state)
    return out.astype(spec.dtype), state


def bidirectional_gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay_fwd: Float[Array, "B T H K"],
    log_decay_bwd: Float[Array, "B T H K"],
) -> Float[Array, "B T H V"]:
    """Both directions, summed; see `kernels_pallas.gla.api.bidirectional_gla`."""

    def run(q, k, v, log_decay_fwd, log_decay_bwd, segment):
        forward, _ = _scan(spec, q, k, v, log_decay_fwd, None, segment, reverse=False)
        backward, _ = _scan(spec, q, k, v, log_decay_bwd, None, segment, reverse=True)
        return forward + backward

    return _by_platform(run, q, k, v, log_decay_fwd, log_decay_bwd).astype(spec.dtype)


def _by_platform(run: Callable[..., Any], *arrays: Any) -> Any:
    """Segments fit for a cache on CPU; one segment, few and large operations, elsewhere."""
    return jax.lax.platform_dependent(
        *arrays,
        cpu=functools.partial(run, segment=_CPU_SEGMENT),
        default=functools.partial(run, segment=None),
    )


def _scan(
    spec: GlaSpec,
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
    state: Any,
    segment: int | None,
    *,
    reverse: bool,
) -> tuple[Any, Any]:
    """Scans one direction, segment by segment; a segment is a number of chunks side by side.

    The backward pass keeps the inputs and the state at each segment's start, and computes the rest
    of a segment again.
    """
    rows = spec.batch * spec.heads
    chunk = min(_CHUNK, 1 << (spec.tokens - 1).bit_length())
    chunks = -(-spec.tokens // chunk)
    if segment is None:
        segments = 1
    else:
        segments = -(-chunks // max(1, segment // max(1, rows * chunk * spec.key_width)))
    per_segment = -(-chunks // segments)
    segments = -(-chunks // per_segment)
    padded = segments * per_segment * chunk

    def split(x):
        # A padded token has k = v = 0 and log-decay 0: it adds nothing and decays nothing.
        x = jnp.pad(x, ((0, 0), (0, padded - spec.tokens), (0, 0), (0, 0)))
        x = x.reshape(spec.batch, segments, per_segment, chunk, spec.heads, x.shape[-1])
        x = x.transpose(1, 2, 0, 4, 3, 5)
        return x.reshape(segments, per_segment, rows, chunk, x.shape[-1])

    # The inner checkpoints keep a branch's intermediates from being carried, as zeros, by the other
    # branch; the outer one keeps the arguments of both from being stored once more. Inside a scan
    # nothing can be merged with the forward pass, so there is nothing to prevent.
    remat = functools.partial(jax.checkpoint, prevent_cse=False)

    @remat
    def step(state, xs):
        mild = jnp.all(xs[3] >= _MILD)
        factored, merged = (
            remat(functools.partial(_segment, spec, scores, reverse))
            for scores in (_factored, _merged)
        )
        return jax.lax.cond(mild, factored, merged, state, *xs)

    if state is None:
        state = jnp.zeros((rows, spec.key_width, spec.value_width), spec.state_dtype)
    else:
        state = state.reshape(rows, *state.shape[2:]).astype(spec.state_dtype)
    xs = [split(x) for x in (q, k, v, log_decay)]
    state, out = jax.lax.scan(step, state, xs, reverse=reverse)
    out = out.reshape(segments, per_segment, spec.batch, spec.heads, chunk, spec.value_width)
    out = out.transpose(2, 0, 1, 4, 3, 5)  # [B, segments, N, C, H, V]
    out = out.reshape(spec.batch, padded, spec.heads, spec.value_width)[:, : spec.tokens]
    return out, state.reshape(spec.batch, spec.heads, *state.shape[1:])


def _segment(
    spec: GlaSpec,
    scores: Callable[..., Any],
    reverse: bool,
    state: Any,
    q: Any,
    k: Any,
    v: Any,
    log_decay: Any,
) -> tuple[Any, Any]:
    """One segment: state [X, K, V]; q, k, log_decay [N, X, C, K]; v [N, X, C, V]; X is B * H."""
    q, k, v, log_decay = (x.astype(spec.state_dtype) for x in (q, k, v, log_decay))
    dot = functools.partial(jnp.einsum, precision=spec.dot_precision)
    q_in, k_out, decay, within = scores(dot, spec.scale * q, k, log_decay, reverse)
    update = dot("nxck,nxcv->nxkv", k_out, v)

    def step(state, chunk):
        decay, update = chunk
        return decay[..., None] * state + update, state

    state, before = jax.lax.scan(step, state, (decay, update), reverse=reverse)  # [N, X, K, V]
    return state, dot("nxij,nxjv->nxiv", within, v) + dot("nxck,nxkv->nxcv", q_in, before)


def _factored(
    dot: Callable[..., Any], q: Any, k: Any, log_decay: Any, reverse: bool
) -> tuple[Any, Any, Any, Any]:
    """Scores from decays relative to the middle of the chunk; for log-decays >= _MILD only.

    Takes and returns what `_merged` does. The clips do nothing to such decays: they keep this
    branch finite where it is computed and then not selected, as happens under `jax.vmap`.
    """
    size = q.shape[2]
    seen = np.tri(size, dtype=bool)  # [i, j]: token j is scanned no later than token i
    if reverse:
        seen = seen.T
    log_decay = jnp.maximum(log_decay, _MILD)
    total = dot("ij,nxjk->nxik", jnp.asarray(seen, q.dtype), log_decay)  # from the start through i
    end = total[:, :, 0 if reverse else -1]
    middle = total[:, :, size // 2]
    relative = total - middle[:, :, None]
    q = q * jnp.exp(relative)
    k = k * jnp.exp(-relative)
    within = jnp.where(seen, dot("nxik,nxjk->nxij", q, k), 0)
    q_in = q * jnp.exp(middle)[:, :, None]
    k_out = k * jnp.exp(end - middle)[:, :, None]
    return q_in, k_out, jnp.exp(end), within


def _merged(
    dot: Callable[..., Any], q: Any, k: Any, log_decay: Any, reverse: bool
) -> tuple[Any, Any, Any, Any]:
    """Scores from merging blocks of 1, 2, 4, ... tokens pairwise; for any log-decay.

    Every decay that occurs is a product of factors in [0, 1] over neighbouring tokens: nothing
    overflows, nothing is divided or subtracted, and the same holds in the gradients.

    Args:
        dot: Matrix product by subscripts.
        q: Scaled queries [N, X, C, K].
        k: Keys [N, X, C, K].
        log_decay: Log-decays [N, X, C, K].
        reverse: The scan runs from the last token to the first.

    Returns:
        q with the decays from the chunk's start through its token [N, X, C, K], k with the decays
        after its token to the chunk's end [N, X, C, K], the chunk's decay [N, X, K], and the
        scores between the chunk's tokens [N, X, C, C].
    """
    decay = jnp.exp(log_decay)
    scores = jnp.sum(q * k, axis=-1)[..., None, None]  # [N, X, blocks, width, width]
    q, k, decay = ((x[:, :, :, None]) for x in (q * decay, k, decay))  # [N, X, blocks, width, K]

    def join(earlier, later, axis):
        return jnp.concatenate((later, earlier) if reverse else (earlier, later), axis)

    for _ in range(int(math.log2(q.shape[2]))):
        halves = ((x[:, :, 0::2], x[:, :, 1::2]) for x in (q, k, decay, scores))
        (q0, q1), (k0, k1), (decay0, decay1), (scores0, scores1) = (
            pair[::-1] if reverse else pair for pair in halves
        )  # 0 is scanned before 1
        corner = dot("nxbik,nxbjk->nxbij", q1, k0)
        row0 = join(scores0, jnp.zeros_like(corner), axis=4)
        scores = join(row0, join(corner, scores1, axis=4), axis=3)
        q = join(q0, decay0 * q1, axis=3)
        k = join(k0 * decay1, k1, axis=3)
        decay = decay0 * decay1
    return q[:, :, 0], k[:, :, 0], decay[:, :, 0, 0], scores[:, :, 0]
