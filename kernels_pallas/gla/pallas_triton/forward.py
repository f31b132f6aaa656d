"""Forward kernels: outputs, and states at the borders of segments."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.core import pallas_compat
from kernels_pallas.gla.pallas_triton.chunk import (
    Chunk,
    Geometry,
    Operand,
    Place,
    View,
    arrays_of,
    chunk_number,
    chunk_state_index,
    count_arrays,
    dot,
    exact_scores,
    gate_weights,
    geometry_of,
    locate,
    log_decay_sums,
    operands_of,
    padded_state_shape,
    run_both_passes,
    scanned_before,
    state_index,
    state_step,
    too_strong,
)
from kernels_pallas.gla.pallas_triton.config import KernelConfig
from kernels_pallas.gla.spec import GlaSpec


def _scan(
    geometry: Geometry,
    place: Place,
    refs: tuple[Any, Any, Any, Any],
    state: Any,
    out_ref: Any,
    keep: Callable[[Any, Any], None],
    *,
    reverse: bool,
    exact: bool,
    add: bool,
    interpreting: bool,
) -> tuple[Any, Any]:
    """Walks over a segment in one direction and writes, or adds, its outputs.

    Takes and returns the state [K, V]. v is only ever the right operand of products over tokens:
    were it needed in two layouts, the pipeline would not load it ahead. Also returns the least
    chunk decay met [K]: unless `exact`, the outputs are right only if that is at least
    exp(geometry.mildest_total).
    """
    exp2 = functools.partial(pallas_compat.exp2, interpreting=interpreting)
    q_ref, k_ref, v_ref, log_decay_ref = refs
    causal = scanned_before(geometry.chunk, reverse, itself=True)
    weights = gate_weights(geometry, place, log_decay_ref, interpreting=interpreting)

    def step(n, carry):
        state, least = carry
        number = chunk_number(geometry, place, n, reverse)
        chunk = Chunk(geometry, place, number, interpreting)
        q = pallas_compat.widen(chunk.read(q_ref, "K"), interpreting=interpreting)
        k = pallas_compat.widen(chunk.read(k_ref, "K"), interpreting=interpreting)
        v = chunk.read(v_ref, "V")
        log_decays = chunk.read_log_decays(log_decay_ref, weights)
        if add:  # early: it takes long
            so_far = chunk.read(out_ref, "V")
        through = log_decay_sums(geometry, causal, log_decays)  # [C, K]
        decay = exp2(through)
        q_in = (q * (decay * geometry.scale)).astype(geometry.operand)
        end = jnp.min(decay, axis=0)  # decays only shrink: the least is that of the whole chunk
        if exact:
            after = scanned_before(geometry.chunk, not reverse, itself=False)
            k_out = k * exp2(log_decay_sums(geometry, after, log_decays))
            scores = exact_scores(geometry, reverse, q * geometry.scale, k, log_decays.steps())
        else:
            k_out = k * exp2(-through)
            scores = dot(geometry, q_in, k_out.astype(geometry.operand).T)
            scores = jnp.where(causal, scores, 0.0)
        k_out = k_out.astype(geometry.operand)
        keep(number, state)
        out = dot(geometry, q_in, state.astype(geometry.operand))
        out += dot(geometry, scores.astype(geometry.operand), v)
        if add:
            out += so_far.astype(jnp.float32)
        chunk.write(out_ref, "V", out)
        update = dot(geometry, k_out.T, v)  # [K, V]
        state = state * end[:, None] + update if exact else (state + update) * end[:, None]
        return state, jnp.minimum(least, end)

    ones = jnp.ones((geometry.key_block,), jnp.float32)
    return jax.lax.fori_loop(0, geometry.chunks, step, (state, ones))


def _forward_kernel(
    *refs: Any,
    geometry: Geometry,
    views: tuple[View, ...],
    directions: tuple[bool, ...],
    split_directions: bool,
    has_initial: bool,
    wants_final: bool,
    keeps_states: bool,
    exact: bool,
    interpreting: bool,
) -> None:
    """Outputs of a segment.

    Refs: arrays of q, k, v and log-decays per direction, as `views` tells; initial states;
    outputs, final states, states before each chunk, least decays.

    `directions` tells for each direction whether it is reversed. If `split_directions`, a program
    walks in one of them and has an output of its own; else in all of them, one after the other.
    If `exact`, the
    refs before the outputs include these themselves, and only programs that met too strong a decay
    the first time do anything.
    """
    count = len(directions)
    q_ref, k_ref, v_ref, *log_decay_refs = operands_of(refs, views)
    rest = list(refs[count_arrays(views) :])
    initial_ref = rest.pop(0) if has_initial else None
    if exact:
        least_ref, *rest = rest
        rest = rest[len(rest) // 2 :]
    else:
        least_ref = rest.pop()
    states_ref = rest.pop() if keeps_states else None
    final_ref = rest.pop() if wants_final else None
    out_refs = rest
    program = pallas_compat.program_id(0)
    least_index = (program,)
    if split_directions and count > 1:
        which = program % count
        program = program // count
    place = locate(geometry, program)

    def walk(number: int) -> Any:
        index = state_index(geometry, place, number, place.row(geometry))

        def keep(chunk, state):
            if keeps_states:
                at = chunk_state_index(geometry, place, number, chunk)
                pallas_compat.store(states_ref, at, state, None, interpreting=interpreting)

        if has_initial:
            state = pallas_compat.load(initial_ref, index, None, interpreting=interpreting)
        else:
            state = jnp.zeros((geometry.key_block, geometry.value_block), jnp.float32)
        state, least = _scan(
            geometry,
            place,
            (q_ref, k_ref, v_ref, log_decay_refs[number]),
            state,
            out_refs[number if split_directions else 0],
            keep,
            reverse=directions[number],
            exact=exact,
            add=number > 0 and not split_directions,
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
        if split_directions and count > 1:
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
    launch: KernelConfig,
    directions: tuple[bool, ...],
    q: Operand,
    k: Operand,
    v: Operand,
    log_decays: Sequence[Operand],
    initial: Any,
    *,
    wants_final: bool,
    keeps_states: bool,
) -> tuple[list[Any], Any, Any]:
    """Runs the forward kernels: one for all programs, and one that repeats those it was not for.

    Args:
        spec: The call.
        launch: Its tiling.
        directions: For each direction whether it is reversed.
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        log_decays: [B, T, H, K] per direction.
        initial: States [directions, B * H * segments, K, V] as padded by `pad_state`, or None.
        wants_final: Whether final states of all segments are wanted.
        keeps_states: Whether the states before each chunk are wanted.

    Returns:
        Outputs [B, T, H, V], one, or one per direction if `launch.split_directions`; final states
        in the layout of `initial`, or None; and states before each chunk
        [directions, B * H * segments, chunks, K, V], or None.
    """
    geometry = geometry_of(spec, launch)
    copies = len(directions) if launch.split_directions else 1
    rows = spec.batch * spec.heads * launch.segments
    programs = rows * geometry.value_blocks * copies
    out = (spec.batch, spec.tokens, spec.heads, spec.value_width)
    outs = [jax.ShapeDtypeStruct(out, spec.dtype)] * copies
    if wants_final:
        outs.append(
            jax.ShapeDtypeStruct(
                (len(directions), rows, *padded_state_shape(geometry)), jnp.float32
            )
        )
    if keeps_states:
        states_shape = (len(directions), rows, geometry.chunks, *padded_state_shape(geometry))
        outs.append(jax.ShapeDtypeStruct(states_shape, geometry.operand))
    arrays, views = arrays_of([q, k, v, *log_decays])
    inputs = [*arrays, *(() if initial is None else (initial,))]
    kernel = functools.partial(
        _forward_kernel,
        geometry=geometry,
        views=views,
        directions=directions,
        split_directions=launch.split_directions,
        has_initial=initial is not None,
        wants_final=wants_final,
        keeps_states=keeps_states,
    )
    results = run_both_passes(kernel, "gla_forward", geometry, launch, programs, inputs, outs)
    states = results.pop() if keeps_states else None
    final = results.pop() if wants_final else None
    return results, final, states


def _states_kernel(
    *refs: Any,
    geometry: Geometry,
    views: tuple[View, ...],
    directions: tuple[bool, ...],
    gradient: bool,
    interpreting: bool,
) -> None:
    """States of segments by themselves.

    Refs: arrays of keys, values and log-decays, as `views` tells; states, decays [.., K].

    For each direction and each segment by itself: the state that its tokens make by its end, and
    the segment's decay. With `gradient`, queries stand for keys and output gradients for values,
    and it is the gradient of the state at the segment's start.
    """
    *inputs, states_ref, decays_ref = refs
    k_ref, v_ref, *log_decay_refs = operands_of(inputs, views)
    program = pallas_compat.program_id(0)
    which = program % len(directions)
    place = locate(geometry, program // len(directions))

    def run(number: int) -> None:
        reverse = directions[number]
        weights = gate_weights(geometry, place, log_decay_refs[number], interpreting=interpreting)

        def step(n, carry):
            state, total = carry
            chunk_at = chunk_number(geometry, place, n, reverse != gradient)
            state, end = state_step(
                geometry,
                Chunk(geometry, place, chunk_at, interpreting),
                (k_ref, v_ref, log_decay_refs[number]),
                weights,
                state,
                reverse=reverse,
                gradient=gradient,
                interpreting=interpreting,
            )
            return state, total * end

        state = jnp.zeros((geometry.key_block, geometry.value_block), jnp.float32)
        ones = jnp.ones((geometry.key_block,), jnp.float32)
        state, total = jax.lax.fori_loop(0, geometry.chunks, step, (state, ones))
        row = place.row(geometry)
        index = state_index(geometry, place, number, row)
        pallas_compat.store(states_ref, index, state, None, interpreting=interpreting)
        index = (number, row, jnp.arange(geometry.key_block))
        pallas_compat.store(decays_ref, index, total, None, interpreting=interpreting)

    for number in range(len(directions)):
        pallas_compat.when(which == number)(functools.partial(run, number))


def border_states(
    spec: GlaSpec,
    launch: KernelConfig,
    directions: tuple[bool, ...],
    k: Operand,
    v: Operand,
    log_decays: Sequence[Operand],
    given: Any,
    *,
    gradient: bool,
) -> tuple[Any, Any]:
    """States at the borders of segments, or their gradients.

    Args:
        spec: The call.
        launch: Its tiling.
        directions: For each direction whether it is reversed.
        k: Keys, or queries with `gradient`.
        v: Values, or output gradients with `gradient`.
        log_decays: [B, T, H, K] per direction.
        given: The state, or the gradient, to begin with, [directions, B * H, K, V], or None.
        gradient: Gradients of states are wanted; they move against the scan.

    Returns:
        What each segment begins with, [directions, B * H * segments, K, V], and what the last one
        ends with, [directions, B * H, K, V].
    """
    geometry = geometry_of(spec, launch)
    rows, segments = spec.batch * spec.heads, launch.segments
    keys, values = padded_state_shape(geometry)
    arrays, views = arrays_of([k, v, *log_decays])
    states, decays = pallas_compat.triton_call(
        functools.partial(
            _states_kernel,
            geometry=geometry,
            views=views,
            directions=directions,
            gradient=gradient,
        ),
        name="gla_border_states",
        programs=rows * segments * geometry.value_blocks * len(directions),
        out_shape=[
            jax.ShapeDtypeStruct((len(directions), rows * segments, keys, values), jnp.float32),
            jax.ShapeDtypeStruct((len(directions), rows * segments, keys), jnp.float32),
        ],
        num_warps=launch.num_warps,
        num_stages=launch.num_stages,
    )(*arrays)
    states = states.reshape(len(directions), rows, segments, keys, values)
    decays = decays.reshape(len(directions), rows, segments, keys, 1)
    starts, ends = [], []
    for number, reverse in enumerate(directions):
        state = jnp.zeros((rows, keys, values), jnp.float32) if given is None else given[number]
        begun = [state] * segments
        for segment in range(segments)[:: -1 if reverse != gradient else 1]:
            begun[segment] = state
            state = state * decays[number, :, segment] + states[number, :, segment]
        starts.append(jnp.stack(begun, axis=1).reshape(rows * segments, keys, values))
        ends.append(state)
    return jnp.stack(starts), jnp.stack(ends)
