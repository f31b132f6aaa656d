"""Gated linear attention by chunks of tokens in plain XLA: fast everywhere, right for any decay.

A chunk's work is a few matrix products; states pass from chunk to chunk. README.md derives it and
tells what was measured. Inside a chunk there are two ways to the same numbers: `_factored`, one
product, where all decays of a segment are mild; `_halved`, for any decay in [-inf, 0].
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.gla.spec import GlaSpec

# Tokens per chunk, a power of two: more means fewer states but wider score matrices.
_CHUNK = 32
# Strongest log-decay a token may have for `_factored`: with 32 tokens no factor exceeds exp(16),
# and a log-decay's gradient stays well above the rounding of the terms that cancel in it.
_MILD = -1.0
# Stands for -inf where sums of log-decays are matrix products; its exp is 0 in float64 too.
_SHUT = -1000.0
# Segments run one after the other, so that a CPU works in its cache: not below this many elements
# of q per segment, and not more segments than this, so that accelerators get few, large operations.
_SEGMENT_ELEMENTS = 1 << 15
_MAX_SEGMENTS = 32
# Chunks whose states are passed on without a loop in between.
_UNROLL = 8


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
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """One direction; see `kernels_pallas.gla.api.gla`."""
    out, state = _scan(spec, q, k, v, log_decay, initial_state, spec.reverse)
    return out.astype(spec.dtype), state if spec.return_final_state else None


def bidirectional_gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay_fwd: Float[Array, "B T H K"],
    log_decay_bwd: Float[Array, "B T H K"],
) -> Float[Array, "B T H V"]:
    """Both directions, summed; see `kernels_pallas.gla.api.bidirectional_gla`."""
    forward, _ = _scan(spec, q, k, v, log_decay_fwd, None, reverse=False)
    backward, _ = _scan(spec, q, k, v, log_decay_bwd, None, reverse=True)
    return (forward + backward).astype(spec.dtype)


def _scan(
    spec: GlaSpec, q: Any, k: Any, v: Any, log_decay: Any, state: Any, reverse: bool
) -> tuple[Any, Any]:
    """Scans one direction, segment by segment; a segment is some chunks side by side.

    The backward pass keeps the inputs and the state at each segment's start, and computes the rest
    of a segment again.
    """
    rows = spec.batch * spec.heads
    chunk = min(_CHUNK, 1 << (spec.tokens - 1).bit_length())
    chunks = -(-spec.tokens // chunk)
    segments = max(1, min(chunks, _MAX_SEGMENTS, q.size // _SEGMENT_ELEMENTS))
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
        factored, halved = (
            remat(functools.partial(_segment, spec, reverse, scores))
            for scores in (_factored, _halved)
        )
        return jax.lax.cond(mild, factored, halved, state, *xs)

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
    reverse: bool,
    scores: Callable[..., Any],
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

    unroll = min(_UNROLL, decay.shape[0])
    updates = (decay, update)
    state, before = jax.lax.scan(step, state, updates, reverse=reverse, unroll=unroll)
    return state, dot("nxij,nxjv->nxiv", within, v) + dot("nxck,nxkv->nxcv", q_in, before)


def _factored(
    dot: Callable[..., Any], q: Any, k: Any, log_decay: Any, reverse: bool
) -> tuple[Any, ...]:
    """Scores from decays relative to the middle of the chunk; for log-decays >= _MILD only.

    Takes and returns what `_halved` does. The clip does nothing to such decays: it keeps this
    branch finite where it is computed and then not selected, as happens under `jax.vmap`.
    """
    size = q.shape[2]
    i, j = _positions(size, reverse)
    seen = j <= i
    total = _sums(seen, jnp.maximum(log_decay, _MILD))
    middle, end = total[:, :, size // 2], total[:, :, 0 if reverse else -1]
    relative = total - middle[:, :, None]
    q = q * jnp.exp(relative)
    k = k * jnp.exp(-relative)
    within = jnp.where(seen, dot("nxik,nxjk->nxij", q, k), 0)
    q_in = q * jnp.exp(middle)[:, :, None]
    k_out = k * jnp.exp(end - middle)[:, :, None]
    return q_in, k_out, jnp.exp(end), within


def _halved(
    dot: Callable[..., Any], q: Any, k: Any, log_decay: Any, reverse: bool
) -> tuple[Any, ...]:
    """Scores by halving the chunk again and again; for any log-decay.

    A query in the later half of a block and a key in its earlier half meet in the block's middle:
    each carries its decays up to there. Every factor is in [0, 1] and made by a sum of its own, so
    nothing overflows or cancels, in the gradients neither.

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
    size = q.shape[2]
    i, j = _positions(size, reverse)
    log_decay = jnp.maximum(log_decay, _SHUT)
    q_in = q * jnp.exp(_sums(j <= i, log_decay))
    k_out = k * jnp.exp(_sums(j > i, log_decay))
    within = jnp.where(i == j, jnp.sum(q * k, axis=-1)[..., None], 0)  # [N, X, C, C]
    for width in (1 << level for level in range(size.bit_length() - 1)):
        middle = i // (2 * width) * (2 * width) + width  # of the block that token i is in
        before, after = (i < j) & (j < middle), (middle <= j) & (j <= i)
        decay = jnp.exp(_sums(np.where(i < middle, before, after), log_decay))
        meet = (i // (2 * width) == j // (2 * width)) & (j < middle) & (middle <= i)
        within = within + jnp.where(meet, dot("nxik,nxjk->nxij", q * decay, k * decay), 0)
    return q_in, k_out, jnp.exp(jnp.sum(log_decay, axis=2)), within


def _positions(size: int, reverse: bool) -> tuple[np.ndarray, np.ndarray]:
    """When the tokens of a chunk are scanned: as a column [C, 1] and as a row [1, C]."""
    i, j = np.ogrid[:size, :size]
    return (size - 1 - i, size - 1 - j) if reverse else (i, j)


def _sums(tokens: np.ndarray, log_decay: Any) -> Any:
    """Sums [N, X, C, K] of the log-decays of the tokens that each row of `tokens` [C, C] marks.

    Only terms of one sign are added, and in full precision whatever the inputs' type.
    """
    weights = jnp.asarray(tokens, log_decay.dtype)
    return jnp.einsum("ij,nxjk->nxik", weights, log_decay, precision="highest")
