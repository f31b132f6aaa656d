"""Backward kernel: the gradients of every input in one launch."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from kernels_pallas.core import pallas_compat
from kernels_pallas.gla.pallas_triton.chunk import (
    Chunk,
    Columns,
    Gates,
    Geometry,
    Place,
    View,
    arrays_of,
    chunk_number,
    chunk_state_index,
    count_arrays,
    dot,
    exact_gradients,
    exact_scores,
    gate_weights,
    geometry_of,
    locate,
    log_decay_sums,
    operands_of,
    padded_state_shape,
    row_sums,
    run_both_passes,
    scanned_before,
    state_index,
    too_strong,
)
from kernels_pallas.gla.pallas_triton.config import KernelConfig
from kernels_pallas.gla.spec import GlaSpec


def _walk_back(
    geometry: Geometry,
    place: Place,
    refs: tuple[Any, ...],
    grad_refs: tuple[Any, ...],
    grad_place: Place,
    grad_state: Any,
    kept: Any,
    *,
    reverse: bool,
    starts_empty: bool,
    exact: bool,
    add: bool,
    interpreting: bool,
) -> tuple[Any, Any]:
    """Walks against the scan and writes, or adds, the gradients of each chunk.

    Takes and returns the gradient of the state [K, V] at the segment's end and start. Also returns
    the least chunk decay met, as the forward kernel does.
    """
    exp2 = functools.partial(pallas_compat.exp2, interpreting=interpreting)
    widen = functools.partial(pallas_compat.widen, interpreting=interpreting)
    q_ref, k_ref, v_ref, log_decay_ref, grad_out_ref = refs
    grad_q_ref, grad_k_ref, grad_v_ref, grad_log_decay_ref = grad_refs
    causal = scanned_before(geometry.chunk, reverse, itself=True)
    before = scanned_before(geometry.chunk, reverse, itself=False)
    not_before = scanned_before(geometry.chunk, not reverse, itself=True)
    operand = geometry.operand
    weights = gate_weights(geometry, place, log_decay_ref, interpreting=interpreting)

    def step(n, carry):
        grad_state, least = carry
        number = chunk_number(geometry, place, n, not reverse)
        chunk = Chunk(geometry, place, number, interpreting)
        q = chunk.read(q_ref, "K").astype(jnp.float32)
        k = chunk.read(k_ref, "K").astype(jnp.float32)
        v = chunk.read(v_ref, "V")
        grad_out = chunk.read(grad_out_ref, "V")
        log_decays = chunk.read_log_decays(log_decay_ref, weights)
        state = kept(number)  # [K, V] before the chunk
        grad_chunk = Chunk(geometry, grad_place, number, interpreting)
        if add:  # early: it takes long
            so_far_q = grad_chunk.read(grad_q_ref, "K")
            so_far_k = grad_chunk.read(grad_k_ref, "K")
            so_far_v = chunk.read(grad_v_ref, "V")

        through = log_decay_sums(geometry, causal, log_decays)
        decay = exp2(through)
        end = jnp.min(decay, axis=0)
        q_factor = decay * geometry.scale
        q_in = (q * q_factor).astype(operand)
        decayed = grad_state * end[:, None]
        grad_scores = jnp.where(causal, dot(geometry, grad_out, v.T), 0.0)
        if exact:
            k_factor = exp2(
                log_decay_sums(
                    geometry, scanned_before(geometry.chunk, not reverse, itself=False), log_decays
                )
            )
            k_out = (k * k_factor).astype(operand)
            grad_end = grad_state.astype(operand)
            decays = log_decays.steps()
            scores_t = exact_scores(geometry, reverse, q * geometry.scale, k, decays).T
        else:
            k_factor = exp2(-through)
            k_out = (k * k_factor).astype(operand)
            grad_end = decayed.astype(operand)
            scores_t = jnp.where(not_before, dot(geometry, k_out, q_in.T), 0.0)

        grad_v = dot(geometry, scores_t.astype(operand), grad_out)
        grad_v += dot(geometry, k_out, grad_end)
        q_across = dot(geometry, grad_out, state.T)  # [C, K]
        k_across = dot(geometry, v, grad_end.T)  # [C, K]
        if exact:
            q_within, k_within, within = exact_gradients(
                geometry, reverse, q * geometry.scale, k, decays, grad_scores
            )
            grad_q = q_factor * q_across + geometry.scale * q_within
            grad_k = k_factor * k_across + k_within
        else:
            grad_scores_t = jnp.where(not_before, dot(geometry, v, grad_out.T), 0.0)
            q_within = dot(geometry, grad_scores.astype(operand), k_out)
            k_within = dot(geometry, grad_scores_t.astype(operand), q_in)
            within = widen(q_in) * q_within - widen(k_out) * k_within
            grad_q = q_factor * (q_across + q_within)
            grad_k = k_factor * (k_across + k_within)
        # Every pair of tokens that a decay lies between, and none that cancels: see README.md.
        grad_log_decay = jnp.sum(state.astype(jnp.float32) * decayed, axis=1)[None, :]
        grad_log_decay += row_sums(geometry, not_before, within + widen(q_in) * q_across, 2)
        grad_log_decay += row_sums(geometry, before, widen(k_out) * k_across, 1)

        if starts_empty:  # the first decay has nothing to act on
            rows = number * geometry.chunk + jnp.arange(geometry.chunk)[:, None]
            first = geometry.tokens - 1 if reverse else 0
            grad_log_decay = jnp.where(rows == first, 0.0, grad_log_decay)
        if add:
            grad_q += so_far_q.astype(jnp.float32)
            grad_k += so_far_k.astype(jnp.float32)
            grad_v += so_far_v.astype(jnp.float32)
        grad_chunk.write(grad_q_ref, "K", grad_q)
        grad_chunk.write(grad_k_ref, "K", grad_k)
        chunk.write(grad_v_ref, "V", grad_v)
        grad_chunk.write(grad_log_decay_ref, "K", chunk.gate_gradient(log_decays, grad_log_decay))
        grad_state = decayed + dot(geometry, q_in.T, grad_out)
        return grad_state, jnp.minimum(least, end)

    ones = jnp.ones((geometry.key_block,), jnp.float32)
    return jax.lax.fori_loop(0, geometry.chunks, step, (grad_state, ones))


def _backward_kernel(
    *refs: Any,
    geometry: Geometry,
    views: tuple[View, ...],
    grad_views: tuple[View, ...],
    batch: int,
    directions: tuple[bool, ...],
    split_directions: bool,
    has_final: bool,
    wants_initial: bool,
    starts_empty: bool,
    exact: bool,
    interpreting: bool,
) -> None:
    """Computes the gradients of a segment; flags as in the forward kernel.

    Refs: arrays of q, k, v, output gradient and log-decays per direction, as `views` tells; states
    before each chunk, gradients of states at the end of segments, the array to write into, if there
    is one; arrays of the gradients of q, k, v (per direction if `split_directions`) and of
    log-decays per direction, as `grad_views` tells; gradients of states at the start of
    segments, least decays.
    """
    count = len(directions)
    q_ref, k_ref, v_ref, grad_out_ref, *log_decay_refs = operands_of(refs, views)
    rest = list(refs[count_arrays(views) :])
    states_ref = rest.pop(0)
    final_ref = rest.pop(0) if has_final else None
    if exact:
        least_ref, *rest = rest
        rest = rest[len(rest) // 2 :]
    else:
        least_ref = rest.pop()
    grad_initial_ref = rest.pop() if wants_initial else None
    grads = operands_of(rest[-count_arrays(grad_views) :], grad_views)
    sums_refs, grad_log_decay_refs = grads[:-count], grads[-count:]

    program = pallas_compat.program_id(0)
    least_index = program
    if split_directions and count > 1:
        which = program % count
        program = program // count
    place = locate(geometry, program)
    # Gradients of keys' width are sums over values: each block of values has a part of its own.
    grad_place = Place(
        place.image + place.value_block * batch, place.segment, place.value_block, place.head
    )

    def walk(number: int) -> Any:
        def kept(chunk):
            index = chunk_state_index(geometry, place, number, chunk)
            return pallas_compat.load(states_ref, index, None, interpreting=interpreting)

        index = state_index(geometry, place, number, place.row(geometry))
        if has_final:
            grad_state = pallas_compat.load(final_ref, index, None, interpreting=interpreting)
        else:
            grad_state = jnp.zeros((geometry.key_block, geometry.value_block), jnp.float32)
        first = 3 * number if split_directions else 0
        grad_state, least = _walk_back(
            geometry,
            place,
            (q_ref, k_ref, v_ref, log_decay_refs[number], grad_out_ref),
            (*sums_refs[first : first + 3], grad_log_decay_refs[number]),
            grad_place,
            grad_state,
            kept,
            reverse=directions[number],
            starts_empty=starts_empty,
            exact=exact,
            add=number > 0 and not split_directions,
            interpreting=interpreting,
        )
        if wants_initial:
            pallas_compat.store(
                grad_initial_ref, index, grad_state, None, interpreting=interpreting
            )
        return least

    def run(numbers: Sequence[int]) -> None:
        least = walk(numbers[0])
        for number in numbers[1:]:
            pallas_compat.barrier(interpreting=interpreting)
            least = jnp.minimum(least, walk(number))
        if not exact:
            least = jnp.min(least)
            pallas_compat.store(least_ref, (least_index,), least, None, interpreting=interpreting)

    def launch() -> None:
        if split_directions and count > 1:
            for number in range(count):
                pallas_compat.when(which == number)(functools.partial(run, [number]))
        else:
            run(range(count))

    if exact:
        least = pallas_compat.load(least_ref, (least_index,), None, interpreting=interpreting)
        pallas_compat.when(too_strong(geometry, least))(launch)
    else:
        launch()


def backward(
    spec: GlaSpec,
    launch: KernelConfig,
    directions: tuple[bool, ...],
    q: Any,
    k: Any,
    v: Any,
    log_decays: Sequence[Any],
    grad_out: Any,
    states: Any,
    final: Any,
    *,
    wants_initial: bool,
) -> tuple[Any, Any, Any, list[Any], Any]:
    """Runs the backward kernel.

    Args:
        spec: The call.
        launch: Its tiling.
        directions: For each direction whether it is reversed.
        q: [B, T, H, K].
        k: [B, T, H, K].
        v: [B, T, H, V].
        log_decays: [B, T, H, K] per direction.
        grad_out: Gradient of the output [B, T, H, V].
        states: States before each chunk, as the forward kernel keeps them.
        final: Gradients of the states at the end of segments [directions, B * H * segments, K, V],
            or None.
        wants_initial: Whether gradients of the states at the start of segments are wanted.

    Returns:
        Gradients of q, k, v, of the log-decays, and of the states at the start, or None.
    """
    geometry = geometry_of(spec, launch)
    split_directions = launch.split_directions and len(directions) > 1
    copies = len(directions) if split_directions else 1
    blocks = geometry.value_blocks
    rows = spec.batch * spec.heads * launch.segments
    programs = rows * blocks * copies
    keys = (blocks * spec.batch, *q.shape[1:])

    def key_array(dtype):
        return jax.ShapeDtypeStruct(keys, dtype if blocks == 1 else jnp.float32)

    sums = [key_array(q.dtype), key_array(k.dtype), jax.ShapeDtypeStruct(v.shape, v.dtype)]
    outs = sums * copies + [key_array(x.dtype) for x in log_decays]
    if wants_initial:
        shape = (len(directions), rows, *padded_state_shape(geometry))
        outs.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    arrays, views = arrays_of([q, k, v, grad_out, *log_decays])
    kernel = functools.partial(
        _backward_kernel,
        geometry=geometry,
        views=views,
        grad_views=tuple(range(3 * copies + len(directions))),
        batch=spec.batch,
        directions=directions,
        split_directions=split_directions,
        has_final=final is not None,
        wants_initial=wants_initial,
        starts_empty=not spec.has_initial_state,
    )
    inputs = [*arrays, states, *(() if final is None else (final,))]
    results = run_both_passes(kernel, "gla_backward", geometry, launch, programs, inputs, outs)
    grad_initial = results.pop() if wants_initial else None

    def over_blocks(parts, dtype):
        """Sums arrays [blocks * B, T, H, K], or arrays of directions, in float32."""
        parts = [part for x in parts for part in x.reshape(-1, *q.shape[:3], x.shape[-1])]
        total = parts[0]
        for part in parts[1:]:
            total = total.astype(jnp.float32) + part.astype(jnp.float32)
        return total.astype(dtype)

    grads = [over_blocks(results[i : 3 * copies : 3], x.dtype) for i, x in enumerate((q, k, v))]
    grad_log_decays = [
        over_blocks([part], x.dtype)
        for part, x in zip(results[3 * copies :], log_decays, strict=True)
    ]
    return grads[0], grads[1], grads[2], grad_log_decays, grad_initial


def backward_into(
    spec: GlaSpec,
    launch: KernelConfig,
    q: Columns,
    k: Columns,
    v: Columns,
    log_decays: Sequence[Gates],
    grad_out: Any,
    states: Any,
    final: Any,
    into: Any,
) -> tuple[Any, Any]:
    """Runs the backward kernel of both directions where all inputs are columns of one array.

    Args:
        spec: The call; a program holds all values of a head.
        launch: Its tiling, both directions in one program.
        q: Columns of an array [B, T, E].
        k: The same.
        v: The same.
        log_decays: Gates that read their features there, with one kernel [rank, F], per direction.
        grad_out: Gradient of the output [B, T, H, V].
        states: States before each chunk, as the forward kernel keeps them.
        final: Gradients of the states at the end of segments, or None.
        into: [B, T, E], consumed: gradients are written into its columns of the same places.

    Returns:
        `into` with the columns of q, k and v written, and the gradient [B, T, F] of the logits.
    """
    geometry = geometry_of(spec, launch)
    if geometry.value_blocks > 1 or launch.split_directions:
        raise ValueError(f"one program must hold a head's values and both directions: {launch}")
    arrays, views = arrays_of([q, k, v, grad_out, *log_decays])
    places = [Columns(0, x.start) for x in (q, k, v)]
    places += [Columns(1, gates.column) for gates in log_decays]
    kernel = functools.partial(
        _backward_kernel,
        geometry=geometry,
        views=views,
        grad_views=tuple(places),
        batch=spec.batch,
        directions=(False, True),
        split_directions=False,
        has_final=final is not None,
        wants_initial=False,
        starts_empty=True,
    )
    inputs = [*arrays, states, *(() if final is None else (final,))]
    programs = spec.batch * spec.heads * launch.segments
    logits = (*into.shape[:2], log_decays[0].kernel.shape[1])
    outs = [jax.ShapeDtypeStruct(shape, into.dtype) for shape in (into.shape, logits)]
    grads = run_both_passes(
        kernel, "gla_backward", geometry, launch, programs, inputs, outs, into=[into]
    )
    return grads[0], grads[1]
