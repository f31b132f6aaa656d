"""Gated linear attention by chunks of tokens in plain XLA: fast everywhere, right for any decay.

The work of a chunk is a few matrix products; states pass from chunk to chunk. README.md derives the
formulas and reports measurements. The scores within a chunk are computed in two ways. `_factored`,
one product, is used where all decays of a group of rows are mild. `halved` is right for any decay
in [-inf, 0].
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core.device import Device
from ..core.integers import cdiv, next_power_of_two
from .exchange import arriving_states
from .sequences import Aligned, Restarts, borders
from .spec import GlaSpec

# Tokens per chunk, a power of two. More tokens mean fewer states but wider score matrices.
_CHUNK = 32
# Strongest log-decay of a token for which `_factored` is used. With 32 tokens no factor exceeds
# exp(16), and the gradient of a log-decay stays well above the rounding of terms that cancel.
_MILD = -1.0
# Replaces -inf, where sums of log-decays are matrix products. Its exp is 0 in float64 too.
_SHUT = -1000.0
# Rows (one head of one image) run in groups, one after the other, so that a CPU works in its cache.
# A group has at least this many elements of q. The number of groups is limited, so that
# accelerators get few, large operations.
_GROUP_ELEMENTS = 1 << 15
_MAX_GROUPS = 32
# Number of chunks whose states are passed on without a loop.
_UNROLL = 8

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


def run_by(
    scan: Callable[..., tuple[Array, list[Array]]],
    spec: GlaSpec,
    q: Array,
    k: Array,
    v: Array,
    log_decays: tuple[Array, ...],
    initial_states: tuple[Array, ...] | None,
    cu_seqlens: Array | None,
) -> tuple[Array, tuple[Array, ...] | None]:
    """Computes the operator by a function like `_scan`."""
    directions = spec.directions
    by_direction = dict(zip(directions, log_decays, strict=True))
    if spec.exchange is not None:
        own = [_own_state(spec, k, v, x, reverse) for reverse, x in by_direction.items()]
        initial_states = tuple(arriving_states(spec.exchange, own, log_decays, directions))
    given = dict(zip(directions, initial_states, strict=True)) if initial_states else None
    if cu_seqlens is None:
        out, finals = scan(spec, q, k, v, by_direction, given, None)
    else:
        chunk, _ = chunking(spec)
        layout = Aligned.from_borders(borders(cu_seqlens, spec.tokens), spec.tokens, chunk)
        spread = functools.partial(layout.spread, chunk=chunk)
        restarts = {
            reverse: layout.restarts(given[reverse] if given else None, reverse)
            for reverse in directions
        }
        aligned = dataclasses.replace(spec, tokens=layout.chunks * chunk)
        arrays = *map(spread, (q, k, v)), jax.tree.map(spread, by_direction)
        out, finals = scan(aligned, *arrays, None, restarts)
        out = layout.collect(out)
    return out, tuple(finals) if spec.return_final_state else None


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
    direction. The backward pass keeps only the inputs, and recomputes each group of rows.
    """
    rows = spec.batch * spec.heads
    chunk, chunks = chunking(spec)
    padded = chunks * chunk
    groups = 1
    if isinstance(rows, int):  # a symbolic batch has no divisors
        most = max(1, min(_MAX_GROUPS, q.size // _GROUP_ELEMENTS))
        groups = max(count for count in range(1, most + 1) if rows % count == 0)

    def split(x):
        # A padded token has k = v = 0 and log-decay 0: it adds nothing and decays nothing.
        x = jnp.pad(x, ((0, 0), (0, padded - spec.tokens), (0, 0), (0, 0)))
        x = x.reshape(spec.batch, chunks, chunk, spec.heads, x.shape[-1]).transpose(0, 3, 1, 2, 4)
        return x.reshape(groups, rows // groups, chunks, chunk, x.shape[-1]).swapaxes(1, 2)

    def split_states(x):
        """Returns states [.., rows, K, V] by groups of rows."""
        x = x.reshape(-1, groups, rows // groups, spec.key_width, spec.value_width)
        return jnp.moveaxis(x, 1, 0)

    def group(xs):
        states, restart_states, *arrays = xs
        if restarts is None:
            return _group(spec, states, None, *arrays)
        given = {
            reverse: x._replace(states=restart_states[reverse]) for reverse, x in restarts.items()
        }
        return _group(spec, None, given, *arrays)

    shape = (groups, rows // groups, spec.key_width, spec.value_width)
    initial = restart_states = None
    if restarts is not None:
        restart_states = {reverse: x.states for reverse, x in restarts.items()}
        restart_states = jax.tree.map(split_states, restart_states)
    elif states is None:
        initial = dict.fromkeys(log_decays, jnp.zeros(shape, spec.state_dtype))
    else:
        initial = {reverse: x.reshape(shape) for reverse, x in states.items()}
    xs = (initial, restart_states, split(q), split(k), split(v), jax.tree.map(split, log_decays))
    out, finals = jax.lax.map(_remat(group), xs)
    out = out.swapaxes(1, 2).reshape(spec.batch, spec.heads, chunks, chunk, spec.value_width)
    out = out.transpose(0, 2, 3, 1, 4)  # [B, N, C, H, V]
    out = out.reshape(spec.batch, padded, spec.heads, spec.value_width)[:, : spec.tokens]
    if restarts is not None:
        finals = [jnp.moveaxis(x, 0, 1) for x in finals]
    return out.astype(spec.dtype), [x.reshape(spec.state_shape) for x in finals]


def chunking(spec: GlaSpec) -> tuple[int, int]:
    """Returns the tokens of a chunk and the number of chunks."""
    chunk = _CHUNK
    if spec.sequences is None:
        chunk = min(chunk, next_power_of_two(spec.tokens))
    return chunk, cdiv(spec.tokens, chunk)


# Inside of a scan XLA cannot merge the recomputation with the forward pass, so nothing prevents it.
_remat = functools.partial(jax.checkpoint, prevent_cse=False)


@functools.partial(jax.checkpoint, static_argnums=(0, 4))
def _own_state(spec: GlaSpec, k: Array, v: Array, log_decay: Array, reverse: bool) -> Array:
    """Returns the state [B, H, K, V] that the tokens make of a state of zeros.

    A token's key gets the decays of the tokens scanned after it, a sum of terms of one sign.
    """
    k, v, log_decay = (x.astype(spec.state_dtype) for x in (k, v, log_decay))
    log_decay = jnp.maximum(log_decay, _SHUT)
    if reverse:
        others = jnp.pad(log_decay[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    else:
        others = jnp.pad(log_decay[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    k = k * jnp.exp(jax.lax.cumsum(others, axis=1, reverse=not reverse))
    return jnp.einsum("bthk,bthv->bhkv", k, v, precision=spec.dot_precision)


def _group(
    spec: GlaSpec,
    states: Mapping[bool, Array] | None,
    restarts: Mapping[bool, Restarts] | None,
    q: Array,
    k: Array,
    v: Array,
    log_decays: Mapping[bool, Array],
) -> tuple[Array, list[Array]]:
    """Computes a group of X rows in N chunks: the output [N, X, C, V] and final states.

    Args:
        spec: The call.
        states: Initial states [X, K, V]; the key is True for the reversed direction.
        restarts: In place of `states` for several sequences, whose states are [N, X, K, V].
        q: [N, X, C, K].
        k: [N, X, C, K].
        v: [N, X, C, V].
        log_decays: [N, X, C, K]; the key is True for the reversed direction.
    """
    wide = functools.partial(jax.tree.map, lambda x: x.astype(spec.state_dtype))
    states, q, k, v, log_decays = wide((states, q, k, v, log_decays))
    dot = functools.partial(jnp.einsum, precision=spec.dot_precision)

    def scores(way, q, k, log_decays):
        parts = {reverse: way(dot, q, k, x, reverse) for reverse, x in log_decays.items()}
        return {reverse: part[:3] for reverse, part in parts.items()}, sum(
            within for *_, within in parts.values()
        )

    # Without checkpoints each branch would return zeros for the other branch's intermediates.
    relative, strict = (_remat(functools.partial(scores, way)) for way in (_factored, halved))
    mild = functools.reduce(jnp.logical_and, [jnp.all(x >= _MILD) for x in log_decays.values()])
    arrays = (spec.scale * q, k, log_decays)
    if spec.min_log_decay is not None and spec.min_log_decay >= _MILD:
        parts, within = relative(*arrays)
    else:
        parts, within = jax.lax.cond(mild, relative, strict, *arrays)

    def step(state, chunk):
        decay, update = chunk
        return decay[..., None] * state + update, state

    out, finals = dot("nxij,nxjv->nxiv", within, v), []
    for reverse, (q_in, k_out, decay) in parts.items():
        update = dot("nxck,nxcv->nxkv", k_out, v)
        unroll = min(_UNROLL, decay.shape[0])
        scan = functools.partial(jax.lax.scan, step, reverse=reverse, unroll=unroll)
        if restarts is None:
            assert states is not None
            final, before = scan(states[reverse], (decay, update))
        else:
            zeros = jnp.zeros_like(update[0])
            before, final = restarts[reverse].pass_on(
                lambda *chunks, scan=scan, zeros=zeros: scan(zeros, chunks)[1], decay, update
            )
        out += dot("nxck,nxkv->nxcv", q_in, before)
        finals.append(final)
    return out, finals


def _factored(
    dot: Callable[..., Array], q: Array, k: Array, log_decay: Array, reverse: bool
) -> tuple[Array, Array, Array, Array]:
    """Computes scores from decays relative to the middle of the chunk, for log-decays >= _MILD.

    Arguments and results are those of `halved`. Clipping does not change such decays. It keeps
    this branch finite where it is computed but not selected, as under `jax.vmap`.
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


def halved(
    dot: Callable[..., Array], q: Array, k: Array, log_decay: Array, reverse: bool
) -> tuple[Array, Array, Array, Array]:
    """Computes scores by halving the chunk recursively, for any log-decay.

    A query in the later half of a block and a key in its earlier half meet in the block's middle:
    each carries its decays up to there. Every factor is in [0, 1] and comes from a separate sum. So
    nothing overflows or cancels, neither here nor in the gradients.

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
    """Returns the order in which the tokens of a chunk are scanned, as [C, 1] and as [1, C]."""
    i, j = np.ogrid[:size, :size]
    return (size - 1 - i, size - 1 - j) if reverse else (i, j)


def _sums(tokens: np.ndarray, log_decay: Array) -> Array:
    """Returns sums [N, X, C, K] of the log-decays that each row of `tokens` [C, C] marks.

    Only terms of one sign are added, and in full precision whatever the inputs' type.
    """
    weights = jnp.asarray(tokens, log_decay.dtype)
    return jnp.einsum("ij,nxjk->nxik", weights, log_decay, precision="highest")
