"""Forward kernels: outputs, and states at the borders of segments."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.common import pallas_compat
from kernels_pallas.gla.pallas_triton_chunk import (
    Chunk,
    Geometry,
    Place,
    chunk_number,
    dot,
    exact_scores,
    geometry_of,
    locate,
    log_decay_sums,
    scanned_before,
    state_index,
    state_step,
    too_strong,
)
from kernels_pallas.gla.pallas_triton_config import Launch
from kernels_pallas.gla.spec import GlaSpec


def _scan(
    geometry: Geometry,
    place: Place,
    refs: tuple[Any, Any, Any, Any],
    state: Any,
    out_ref: Any,
    *,
    reverse: bool,
    exact: bool,
    add: bool,
    interpreting: bool,
) -> tuple[Any, Any]:
    """Walks over a segment in one direction and writes, or adds, its outputs.

    Takes and returns the state transposed, [V, K]: so it becomes an operand of the next product
    where it lies. Also returns the least chunk decay met [K]: unless `exact`, the outputs are right
    only if that is no less than exp(geometry.mildest_total).
    """
    q_ref, k_ref, v_ref, log_decay_ref = refs
    causal = scanned_before(geometry.chunk, reverse, itself=True)

    def step(n, carry):
        state, least = carry
        chunk = Chunk(geometry, place, chunk_number(geometry, place, n, reverse), interpreting)
        q = chunk.read(q_ref, "K").astype(jnp.float32)
        k = chunk.read(k_ref, "K").astype(jnp.float32)
        v = chunk.read(v_ref, "V")
        log_decay = chunk.read_log_decay(log_decay_ref)
        through = log_decay_sums(geometry, causal, log_decay)  # [C, K]
        decay = jnp.exp2(through)
        q_in = (q * (decay * geometry.scale)).astype(geometry.operand)
        end = jnp.min(decay, axis=0)  # decays only shrink: the least is that of the whole chunk
        if exact:
            after = scanned_before(geometry.chunk, not reverse, itself=False)
            k_out = k * jnp.exp2(log_decay_sums(geometry, after, log_decay))
            scores = exact_scores(
                geometry, reverse, q * geometry.scale, k, log_decay.astype(jnp.float32)
            )
        else:
            k_out = k * jnp.exp2(-through)
            scores = dot(geometry, q_in, k_out.astype(geometry.operand).T)
            scores = jnp.where(causal, scores, 0.0)
        k_out = k_out.astype(geometry.operand)
        out = dot(geometry, q_in, state.astype(geometry.operand).T)
        out += dot(geometry, scores.astype(geometry.operand), v)
        chunk.write(out_ref, "V", out, add=add)
        update = dot(geometry, v.T, k_out)  # [V, K]
        state = state * end[None, :] + update if exact else (state + update) * end[None, :]
        return state, jnp.minimum(least, end)

    ones = jnp.ones((geometry.key_block,), jnp.float32)
    return jax.lax.fori_loop(0, geometry.chunks, step, (state, ones))


def _forward_kernel(
    *refs: Any,
    geometry: Geometry,
    directions: tuple[bool, ...],
    apart: bool,
    has_initial: bool,
    wants_final: bool,
    exact: bool,
    interpreting: bool,
) -> None:
    """Refs: q, k, v, log-decays per direction, initial states; outputs, final states, least decays.

    `directions` tells for each direction whether it is reversed. If `apart`, a program walks in one
    of them and has an output of its own; else in all of them, one after the other. If `exact`, the
    refs before the outputs include these themselves, and only programs that met too strong a decay
    the first time do anything.
    """
    q_ref, k_ref, v_ref, *rest = refs
    count = len(directions)
    log_decay_refs, rest = rest[:count], rest[count:]
    initial_ref = rest.pop(0) if has_initial else None
    if exact:
        least_ref, *rest = rest
        rest = rest[len(rest) // 2 :]
    else:
        least_ref = rest.pop()
    final_ref = rest.pop() if wants_final else None
    out_refs = rest
    program = pallas_compat.program_id(0)
    least_index = (program,)
    if apart and count > 1:
        which = program % count
        program = program // count
    place = locate(geometry, program)

    def walk(number: int) -> Any:
        index = state_index(geometry, place, number)
        if has_initial:
            state = pallas_compat.load(initial_ref, index, None, interpreting=interpreting)
        else:
            state = jnp.zeros((geometry.value_block, geometry.key_block), jnp.float32)
        state, least = _scan(
            geometry,
            place,
            (q_ref, k_ref, v_ref, log_decay_refs[number]),
            state,
            out_refs[number if apart else 0],
            reverse=directions[number],
            exact=exact,
            add=number > 0 and not apart,
            interpreting=interpreting,
        )
        if wants_final:
            pallas_compat.store(final_ref, index, state, None, interpreting=interpreting)
        return least

    def run(numbers: Sequence[int]) -> None:
        least = walk(numbers[0])
        for number in numbers[1:]:
            pallas_compat.barrier(interpreting=interpreting)
            least = jnp.minimum(least, walk(number))
        if not exact:
            least = jnp.min(least)
            pallas_compat.store(least_ref, least_index, least, None, interpreting=interpreting)

    def launch() -> None:
        if apart and count > 1:
            for number in range(count):
                pallas_compat.when(which == number)(functools.partial(run, [number]))
        else:
            run(range(count))

    if exact:
        least = pallas_compat.load(least_ref, least_index, None, interpreting=interpreting)
        pallas_compat.when(too_strong(geometry, least))(launch)
    else:
        launch()


def forward(
    spec: GlaSpec,
    launch: Launch,
    directions: tuple[bool, ...],
    q: Any,
    k: Any,
    v: Any,
    log_decays: Sequence[Any],
    initial: Any,
    *,
    wants_final: bool,
) -> tuple[list[Any], Any]:
    """Runs the forward kernels: one for all programs, and one that repeats those it was not for.

    Args:
        spec: The call.
        launch: Its tiling.
        directions: For each direction whether it is reversed.
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        log_decays: [B, T, H, K] per direction.
        initial: States [directions, B * H * segments, V, K] as padded by `pad_state`, or None.
        wants_final: Whether final states of all segments are wanted.

    Returns:
        Outputs [B, T, H, V], one, or one per direction if `launch.apart`; and final states in the
        layout of `initial`, or None.
    """
    geometry = geometry_of(spec, launch)
    copies = len(directions) if launch.apart else 1
    rows = spec.batch * spec.heads * launch.segments
    programs = rows * geometry.value_blocks * copies
    outs = [jax.ShapeDtypeStruct(v.shape, v.dtype)] * copies
    if wants_final:
        outs.append(
            jax.ShapeDtypeStruct(
                (
                    len(directions),
                    rows,
                    geometry.value_blocks * geometry.value_block,
                    geometry.key_block,
                ),
                jnp.float32,
            )
        )
    inputs = [q, k, v, *log_decays, *(() if initial is None else (initial,))]
    kernel = functools.partial(
        _forward_kernel,
        geometry=geometry,
        directions=directions,
        apart=launch.apart,
        has_initial=initial is not None,
        wants_final=wants_final,
    )
    *results, least = pallas_compat.triton_call(
        functools.partial(kernel, exact=False),
        name="gla_forward",
        programs=programs,
        out_shape=[*outs, jax.ShapeDtypeStruct((programs,), jnp.float32)],
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )(*inputs)
    results = pallas_compat.triton_call(
        functools.partial(kernel, exact=True),
        name="gla_forward_strong_decays",
        programs=programs,
        out_shape=outs,
        num_warps=launch.exact_num_warps,
        num_stages=1,
        aliases={len(inputs) + 1 + i: i for i in range(len(outs))},
    )(*inputs, least, *results)
    results = list(results)
    final = results.pop() if wants_final else None
    return results, final


def _states_kernel(
    *refs: Any,
    geometry: Geometry,
    directions: tuple[bool, ...],
    gradients: tuple[bool, ...],
    interpreting: bool,
) -> None:
    """Refs: keys and values per entry of `gradients`, log-decays per direction; states, decays.

    For each direction and each segment by itself: the state that its tokens make by its end, and,
    where `gradients` has True, the gradient of the state at its start that its outputs make. For
    the latter queries stand for keys and output gradients for values.
    """
    *inputs, states_ref, decays_ref = refs
    pairs = [inputs[2 * i : 2 * i + 2] for i in range(len(gradients))]
    log_decay_refs = inputs[2 * len(gradients) :]
    program = pallas_compat.program_id(0)
    kinds = [(d, g) for d in range(len(directions)) for g in range(len(gradients))]
    which = program % len(kinds)
    place = locate(geometry, program // len(kinds))

    def run(number: int, d: int, g: int) -> None:
        scan_reverse = directions[d] != gradients[g]

        def step(n, carry):
            state, total = carry
            chunk = Chunk(
                geometry, place, chunk_number(geometry, place, n, scan_reverse), interpreting
            )
            state, end = state_step(
                geometry,
                chunk,
                (*pairs[g], log_decay_refs[d]),
                state,
                reverse=directions[d],
                gradient=gradients[g],
            )
            return state, total * end

        state = jnp.zeros((geometry.value_block, geometry.key_block), jnp.float32)
        ones = jnp.ones((geometry.key_block,), jnp.float32)
        state, total = jax.lax.fori_loop(0, geometry.chunks, step, (state, ones))
        index = state_index(geometry, place, number)
        pallas_compat.store(states_ref, index, state, None, interpreting=interpreting)
        if not gradients[g]:
            row = (d, place.row(geometry), jnp.arange(geometry.key_block))
            pallas_compat.store(decays_ref, row, total, None, interpreting=interpreting)

    for number, (d, g) in enumerate(kinds):
        pallas_compat.when(which == number)(functools.partial(run, number, d, g))


def border_states(
    spec: GlaSpec,
    launch: Launch,
    directions: tuple[bool, ...],
    pairs: Sequence[tuple[Any, Any]],
    log_decays: Sequence[Any],
    given: Sequence[Any],
) -> tuple[list[Any], list[Any]]:
    """States, and their gradients, at the borders of segments.

    Args:
        spec: The call.
        launch: Its tiling.
        directions: For each direction whether it is reversed.
        pairs: (k, v), and for gradients also (scaled by the kernel) (q, output gradient).
        log_decays: [B, T, H, K] per direction.
        given: For each pair the state to start from [directions, B * H, V, K], or None.

    Returns:
        For each pair what each segment starts from, [directions, B * H * segments, V, K], and what
        the last one ends with, [directions, B * H, V, K].
    """
    geometry = geometry_of(spec, launch)
    gradients = tuple(index > 0 for index in range(len(pairs)))
    rows = spec.batch * spec.heads
    shape = (geometry.value_blocks * geometry.value_block, geometry.key_block)
    kinds = len(directions) * len(pairs)
    segments = launch.segments
    states, decays = pallas_compat.triton_call(
        functools.partial(
            _states_kernel, geometry=geometry, directions=directions, gradients=gradients
        ),
        name="gla_border_states",
        programs=rows * segments * geometry.value_blocks * kinds,
        out_shape=[
            jax.ShapeDtypeStruct((kinds, rows * segments, *shape), jnp.float32),
            jax.ShapeDtypeStruct((len(directions), rows * segments, shape[1]), jnp.float32),
        ],
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )(*(x for pair in pairs for x in pair), *log_decays)
    states = states.reshape(len(directions), len(pairs), rows, segments, *shape)
    decays = decays.reshape(len(directions), rows, segments, 1, shape[1])
    starts, ends = [], []
    for index in range(len(pairs)):
        by_direction = []
        last = []
        for d, reverse in enumerate(directions):
            state = jnp.zeros((rows, *shape), jnp.float32)
            if given[index] is not None:
                state = given[index][d]
            begun = [state] * segments
            order = range(segments)
            for segment in reversed(order) if reverse != gradients[index] else order:
                begun[segment] = state
                state = state * decays[d, :, segment] + states[d, index, :, segment]
            by_direction.append(jnp.stack(begun, axis=1).reshape(rows * segments, *shape))
            last.append(state)
        starts.append(jnp.stack(by_direction))
        ends.append(jnp.stack(last))
    return starts, ends
