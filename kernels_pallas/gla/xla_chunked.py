"""Gated linear attention by chunks of tokens in plain XLA: fast everywhere, right for any decay.

A chunk's work is a few matrix products; states pass from chunk to chunk. README.md derives it and
tells what was measured. Inside a chunk there are two ways to the same numbers: `_factored`, one
product, where all decays of a group of rows are mild; `_halved`, for any decay in [-inf, 0].
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from kernels_pallas.core.device import Device
from kernels_pallas.core.integers import next_power_of_two
from kernels_pallas.gla.spec import GlaSpec

# Tokens per chunk, a power of two: more means fewer states but wider score matrices.
_CHUNK = 32
# Strongest log-decay a token may have for `_factored`: with 32 tokens no factor exceeds exp(16),
# and a log-decay's gradient stays well above the rounding of the terms that cancel in it.
_MILD = -1.0
# Stands for -inf where sums of log-decays are matrix products; its exp is 0 in float64 too.
_SHUT = -1000.0
# Rows (one head of one image) run in groups, one after the other, so that a CPU works in its cache:
# not below this many elements of q per group, and not more groups than this, so that accelerators
# get few, large operations.
_GROUP_ELEMENTS = 1 << 15
_MAX_GROUPS = 32
# Chunks whose states are passed on without a loop in between.
_UNROLL = 8


PLATFORMS = None


def supports(spec: GlaSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
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
    out, (state,) = _scan(spec, q, k, v, {spec.reverse: log_decay}, initial_state)
    return out, state if spec.return_final_state else None


def bidirectional_gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay_fwd: Float[Array, "B T H K"],
    log_decay_bwd: Float[Array, "B T H K"],
) -> Float[Array, "B T H V"]:
    """Both directions, summed; see `kernels_pallas.gla.api.bidirectional_gla`."""
    out, _ = _scan(spec, q, k, v, {False: log_decay_fwd, True: log_decay_bwd}, None)
    return out


def _scan(
    spec: GlaSpec, q: Any, k: Any, v: Any, log_decays: Mapping[bool, Any], state: Any
) -> tuple[Any, list[Any]]:
    """The sum over the directions, log-decays by `reverse`, and each direction's final state.

    The backward pass keeps the inputs and computes a group of rows again.
    """
    rows = spec.batch * spec.heads
    chunk = min(_CHUNK, next_power_of_two(spec.tokens))
    chunks = -(-spec.tokens // chunk)
    padded = chunks * chunk
    most = max(1, min(_MAX_GROUPS, q.size // _GROUP_ELEMENTS))
    groups = max(count for count in range(1, most + 1) if rows % count == 0)

    def split(x):
        # A padded token has k = v = 0 and log-decay 0: it adds nothing and decays nothing.
        x = jnp.pad(x, ((0, 0), (0, padded - spec.tokens), (0, 0), (0, 0)))
        x = x.reshape(spec.batch, chunks, chunk, spec.heads, x.shape[-1]).transpose(0, 3, 1, 2, 4)
        return x.reshape(groups, rows // groups, chunks, chunk, x.shape[-1]).swapaxes(1, 2)

    shape = (groups, rows // groups, spec.key_width, spec.value_width)
    if state is None:
        state = jnp.zeros(shape, spec.state_dtype)
    xs = (state.reshape(shape), split(q), split(k), split(v), jax.tree.map(split, log_decays))
    out, states = jax.lax.map(_remat(lambda xs: _group(spec, *xs)), xs)
    out = out.swapaxes(1, 2).reshape(spec.batch, spec.heads, chunks, chunk, spec.value_width)
    out = out.transpose(0, 2, 3, 1, 4)  # [B, N, C, H, V]
    out = out.reshape(spec.batch, padded, spec.heads, spec.value_width)[:, : spec.tokens]
    final = (spec.batch, spec.heads, spec.key_width, spec.value_width)
    return out.astype(spec.dtype), [x.reshape(final) for x in states]


# Inside a scan nothing can be merged with the forward pass, so there is nothing to prevent.
_remat = functools.partial(jax.checkpoint, prevent_cse=False)


def _group(
    spec: GlaSpec, state: Any, q: Any, k: Any, v: Any, log_decays: Mapping[bool, Any]
) -> tuple[Any, list[Any]]:
    """Some rows: state [X, K, V]; q, k and log-decays [N, X, C, K]; v [N, X, C, V]."""
    wide = functools.partial(jax.tree.map, lambda x: x.astype(spec.state_dtype))
    state, q, k, v, log_decays = wide((state, q, k, v, log_decays))
    dot = functools.partial(jnp.einsum, precision=spec.dot_precision)

    def scores(way, q, k, log_decays):
        parts = {reverse: way(dot, q, k, x, reverse) for reverse, x in log_decays.items()}
        return {reverse: part[:3] for reverse, part in parts.items()}, sum(
            within for *_, within in parts.values()
        )

    # The checkpoints keep a branch's intermediates from being carried, as zeros, by the other one.
    factored, halved = (_remat(functools.partial(scores, way)) for way in (_factored, _halved))
    mild = functools.reduce(jnp.logical_and, [jnp.all(x >= _MILD) for x in log_decays.values()])
    arrays = (spec.scale * q, k, log_decays)
    if spec.min_log_decay is not None and spec.min_log_decay >= _MILD:
        parts, within = factored(*arrays)
    else:
        parts, within = jax.lax.cond(mild, factored, halved, *arrays)

    def step(state, chunk):
        decay, update = chunk
        return decay[..., None] * state + update, state

    out, states = dot("nxij,nxjv->nxiv", within, v), []
    for reverse, (q_in, k_out, decay) in parts.items():
        updates = (decay, dot("nxck,nxcv->nxkv", k_out, v))
        unroll = min(_UNROLL, decay.shape[0])
        final, before = jax.lax.scan(step, state, updates, reverse=reverse, unroll=unroll)
        out += dot("nxck,nxkv->nxcv", q_in, before)
        states.append(final)
    return out, states


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
