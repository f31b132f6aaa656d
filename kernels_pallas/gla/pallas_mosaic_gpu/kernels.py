"""The kernel of one scan: outputs and the final state, exact for any decays.

A program owns 64 or 128 values of a head, and walks over chunks of 64 tokens. One warpgroup copies
chunks into shared memory. One prepares them: sums of log-decays, decayed queries and keys, and
scores. One or two hold the state, and compute outputs and the next state.

With G the sum of log-decays from the start of a chunk through a token, and R that through the
middle of the chunk, queries are multiplied by exp(G - R) and keys by exp(R - G). Both are finite
while each half of a chunk decays by no more than exp(-60). If a program finds stronger decays, it
computes its values again token by token, which multiplies by decays only.
"""

import functools
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp

from ...core import mosaic
from ...core.integers import cdiv
from ...core.mosaic import Scalar, along_columns, along_rows, plgpu
from ...core.types import Block, Ref
from ..spec import GlaSpec
from .config import CHUNK, VALUES, Config

LOG2_E = math.log2(math.e)

LOWEST_LOG_DECAY = -9984.0
"""Replaces -inf: its exponential is zero too, but sums of it are finite in float16."""

LOWEST_HALF = -60.0
"""Lowest sum of log-decays over half a chunk whose exponential may be divided by."""


_FIRST_SCANNING = 2
"""Number of the first warpgroup that holds a state, after those that copy and prepare."""


class _Place:
    """The part of the arrays that one warpgroup of a program works on."""

    def __init__(self, spec: GlaSpec, config: Config):
        self.spec, self.config = spec, config
        self.image, self.head = mosaic.axis_index("image"), mosaic.axis_index("head")
        self.block = mosaic.axis_index("values")
        self.chunks = cdiv(spec.tokens, CHUNK)

    def rows(self, step: Scalar) -> mosaic.Slice:
        """Returns the tokens of the chunk that the scan takes at a step."""
        chunk = self.chunks - 1 - step if self.spec.reverse else step
        return mosaic.span(chunk * CHUNK, CHUNK)

    def values(self, group: Scalar) -> mosaic.Slice:
        """Returns the values of a warpgroup that holds a state."""
        return mosaic.span((self.block * self.config.scanning + group) * VALUES, VALUES)


def _kernel(
    ref: SimpleNamespace, shared: SimpleNamespace, *, spec: GlaSpec, config: Config
) -> None:
    place = _Place(spec, config)
    warpgroup = mosaic.axis_index("warpgroup")
    share = functools.partial(mosaic.share_registers, _FIRST_SCANNING + config.scanning)

    @mosaic.when(warpgroup == 0)
    def _() -> None:
        share(copies=True)
        _copy(place, ref, shared)

    @mosaic.when(warpgroup == 1)
    def _() -> None:
        share(copies=False)
        _prepare(place, shared)

    @mosaic.when(warpgroup >= _FIRST_SCANNING)
    def _() -> None:
        share(copies=False)
        _scan(place, ref, shared, warpgroup - _FIRST_SCANNING)


def _copy(place: _Place, ref: SimpleNamespace, shared: SimpleNamespace) -> None:
    """Copies chunks into shared memory."""
    config, image, head = place.config, place.image, place.head

    @mosaic.loop(0, place.chunks)
    def _(step: Scalar) -> None:
        rows = place.rows(step)
        slot = jax.lax.rem(step, config.decay_stages)

        @mosaic.when(step >= config.decay_stages)
        def _() -> None:
            plgpu.barrier_wait(shared.decays_free.at[slot])

        log_decays, loaded = ref.log_decays.at[image, rows, head], shared.decays_loaded.at[slot]
        plgpu.copy_gmem_to_smem(log_decays, shared.log_decays.at[slot], loaded)
        slot = jax.lax.rem(step, config.stages)

        @mosaic.when(step >= config.stages)
        def _() -> None:
            plgpu.barrier_wait(shared.free.at[slot])

        loaded = shared.loaded.at[slot]
        plgpu.copy_gmem_to_smem(ref.k.at[image, rows, head], shared.k.at[slot], loaded)
        plgpu.copy_gmem_to_smem(ref.q.at[image, rows, head], shared.q.at[slot], loaded)
        for group in range(config.scanning):
            v = ref.v.at[image, rows, head, place.values(group)]
            plgpu.copy_gmem_to_smem(v, shared.v.at[slot, group], loaded)

    for free, stages in ((shared.decays_free, config.decay_stages), (shared.free, config.stages)):
        for step in range(max(0, place.chunks - stages), place.chunks):
            plgpu.barrier_wait(free.at[step % stages])


def _prepare(place: _Place, shared: SimpleNamespace) -> None:
    """Replaces q and k of chunks by decayed ones, and computes scores and decays of chunks.

    It is one warpgroup, because the shared memory that reductions between its warps pass through is
    not divided among warpgroups.
    """
    spec, config = place.spec, place.config
    shape = (CHUNK, spec.key_width)

    def scanned(first: Block, second: Block) -> Block:
        """Returns where the first tokens are scanned before the second, or are the same."""
        return first >= second if spec.reverse else first <= second

    def causal() -> Block:
        return scanned(mosaic.iota((CHUNK, CHUNK), 1), mosaic.iota((CHUNK, CHUNK), 0))

    middle = CHUNK // 2 if spec.reverse else CHUNK // 2 - 1  # the last token of the first half
    # Products with these rows are sums from the middle.
    through = jnp.where(causal(), 1.0, 0.0)
    half = jnp.where(scanned(mosaic.iota((CHUNK, CHUNK), 1), jnp.int32(middle)), 1.0, 0.0)
    shared.sums[...] = (through - half).astype(jnp.float16)

    @mosaic.loop(0, place.chunks)
    def _(step: Scalar) -> None:
        slot = jax.lax.rem(step, config.decay_stages)
        plgpu.barrier_wait(shared.decays_loaded.at[slot])
        log_decays = mosaic.matrix(shared.log_decays[slot]).astype(jnp.float32)
        log_decays = jnp.maximum(log_decays, LOWEST_LOG_DECAY)
        shared.narrow[...] = log_decays.astype(jnp.float16)
        plgpu.barrier_arrive(shared.decays_free.at[slot])
        plgpu.commit_smem()
        early = scanned(mosaic.iota(shape, 0), jnp.int32(middle))
        start = jnp.exp2(jnp.sum(jnp.where(early, log_decays, 0.0), axis=0) * LOG2_E)
        sums = mosaic.dot(shared.sums, shared.narrow, shape) * LOG2_E
        slot = jax.lax.rem(step, config.stages)
        plgpu.barrier_wait(shared.loaded.at[slot])
        k = mosaic.matrix(shared.k[slot]).astype(jnp.float32)
        shared.k[slot] = (k * jnp.exp2(-sums)).astype(spec.dtype)
        q = mosaic.matrix(shared.q[slot]).astype(jnp.float32)
        decay = jnp.exp2(sums)
        shared.q[slot] = (q * (decay * spec.scale)).astype(spec.dtype)
        shared.start[slot] = start
        shared.end[slot] = jnp.min(decay, axis=0)  # decays only shrink
        plgpu.commit_smem()
        scores = mosaic.dot(shared.q.at[slot], shared.k.at[slot].T, (CHUNK, CHUNK))
        shared.scores[slot] = jnp.where(causal(), scores, 0.0).astype(spec.dtype)
        plgpu.commit_smem()
        plgpu.barrier_arrive(shared.ready.at[slot])


def _scan(place: _Place, ref: SimpleNamespace, shared: SimpleNamespace, group: Scalar) -> None:
    """Computes outputs and the final state of a warpgroup's values."""
    spec, config, image, head = place.spec, place.config, place.image, place.head
    values = place.values(group)
    shape = (VALUES, spec.key_width)
    first = mosaic.zeros(shape)
    if ref.initial_state is not None:
        first = mosaic.read_matrix(ref.initial_state.at[image, head, values])

    def chunk(step: Scalar, carry: tuple[Block, Block]) -> tuple[Block, Block]:
        state, least = carry
        slot = jax.lax.rem(step, config.stages)
        plgpu.barrier_wait(shared.ready.at[slot])
        start = mosaic.row(shared.start.at[slot])
        state = state * along_rows(start, shape)
        shared.state[group] = state.astype(spec.dtype)
        plgpu.commit_smem()

        def outputs(total: Ref) -> Block:
            plgpu.wgmma(total, shared.scores.at[slot], shared.v.at[slot, group])
            plgpu.wgmma(total, shared.q.at[slot], shared.state.at[group].T)
            return total[...]

        out = mosaic.with_sums(outputs, [(CHUNK, VALUES)])
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        shared.out[group] = out.astype(spec.dtype)
        state += mosaic.dot(shared.v.at[slot, group].T, shared.k.at[slot], shape)
        plgpu.commit_smem()
        rows = place.rows(step)
        plgpu.copy_smem_to_gmem(shared.out.at[group], ref.out.at[image, rows, head, values])
        end = mosaic.row(shared.end.at[slot])
        plgpu.barrier_arrive(shared.free.at[slot])
        return state * along_rows(end, shape), jnp.minimum(least, jnp.minimum(start, end))

    carry = (first, mosaic.ones_row(spec.key_width))
    state, least = jax.lax.fori_loop(0, place.chunks, chunk, carry)

    def write_state(state: Block) -> None:
        if ref.final_state is not None:
            ref.final_state[image, head, values] = state

    write_state(state)
    plgpu.wait_smem_to_gmem(0)
    if has_strong_decays(spec):

        @mosaic.when(jnp.logical_not(jnp.min(least) >= math.exp(LOWEST_HALF)))
        def _() -> None:
            write_state(_recurrent(place, ref, values, first))


def _recurrent(place: _Place, ref: SimpleNamespace, values: mosaic.Slice, state: Block) -> Block:
    """Computes outputs token by token, and returns the final state [V, K]."""
    spec, image, head = place.spec, place.image, place.head
    shape = (VALUES, spec.key_width)

    def token(step: Scalar, state: Block) -> Block:
        t = spec.tokens - 1 - step if spec.reverse else step

        def keys(array: Ref) -> Block:
            row = mosaic.read_row(array.at[image, t, head]).astype(jnp.float32)
            return along_rows(row, shape)

        v = mosaic.read_column(ref.v.at[image, t, head, values]).astype(jnp.float32)
        update = keys(ref.k) * along_columns(v, shape)
        state = state * jnp.exp2(keys(ref.log_decays) * LOG2_E) + update
        out = jnp.sum(state * (keys(ref.q) * spec.scale), axis=1)
        ref.out[image, t, head, values] = out.astype(spec.dtype)
        return state

    return jax.lax.fori_loop(0, spec.tokens, token, state)


def has_strong_decays(spec: GlaSpec) -> bool:
    """Returns whether half a chunk may decay by more than the kernel's products allow."""
    return spec.min_log_decay is None or spec.min_log_decay * (CHUNK // 2) < LOWEST_HALF


def forward(
    spec: GlaSpec,
    config: Config,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decays: jax.Array,
    initial_state: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Launches the kernel.

    Args:
        spec: The call.
        config: Its config.
        q: Queries [B, T, H, K].
        k: Keys [B, T, H, K].
        v: Values [B, T, H, V].
        log_decays: Log-decays [B, T, H, K].
        initial_state: State [B, H, K, V] before the first token, or None.

    Returns:
        The output [B, T, H, V], and the final state [B, H, K, V] if the call returns it.
    """
    inputs = {"q": q, "k": k, "v": v, "log_decays": log_decays}
    if initial_state is not None:
        inputs["initial_state"] = jnp.swapaxes(initial_state.astype(jnp.float32), 2, 3)
    outputs = {"out": jax.ShapeDtypeStruct(v.shape, v.dtype)}
    keys, stages, groups = spec.key_width, config.stages, config.scanning
    if spec.return_final_state:
        state = (spec.batch, spec.heads, spec.value_width, keys)
        outputs["final_state"] = jax.ShapeDtypeStruct(state, jnp.float32)

    def with_names(*refs_and_shared: Ref) -> None:
        *refs, shared = refs_and_shared
        names = dict.fromkeys(("initial_state", "final_state"))
        named = names | dict(zip([*inputs, *outputs], refs, strict=True))
        _kernel(SimpleNamespace(**named), shared, spec=spec, config=config)

    narrow = functools.partial(mosaic.tile, dtype=spec.dtype)
    results = mosaic.mosaic_call(
        with_names,
        name="gla_forward_wide",
        grid={
            "values": spec.value_width // (VALUES * groups),
            "head": spec.heads,
            "image": spec.batch,
        },
        warpgroups=_FIRST_SCANNING + groups,
        outputs=list(outputs.values()),
        scratch={
            "q": narrow((stages, CHUNK, keys)),
            "k": narrow((stages, CHUNK, keys)),
            "v": narrow((stages, groups, CHUNK, VALUES)),
            "log_decays": mosaic.tile((config.decay_stages, CHUNK, keys), log_decays.dtype),
            "narrow": mosaic.tile((CHUNK, keys), jnp.float16),
            "sums": mosaic.tile((CHUNK, CHUNK), jnp.float16),
            "scores": narrow((stages, CHUNK, CHUNK)),
            "state": narrow((groups, VALUES, keys)),
            "out": narrow((groups, CHUNK, VALUES)),
            "start": mosaic.buffer((stages, keys), jnp.float32),
            "end": mosaic.buffer((stages, keys), jnp.float32),
            "decays_loaded": mosaic.barrier(1, config.decay_stages),
            "decays_free": mosaic.barrier(1, config.decay_stages),
            "loaded": mosaic.barrier(2 + groups, stages),
            "ready": mosaic.barrier(1, stages),
            "free": mosaic.barrier(groups, stages),
        },
    )(*inputs.values())
    final_state = jnp.swapaxes(results[1], 2, 3) if spec.return_final_state else None
    return results[0], final_state
