"""States at the borders of segments, and the padded layout of states in the kernels."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ...core import triton
from ...core.named_refs import Refs, launch
from ...core.types import Block
from ..spec import GlaSpec
from .chunk import Chunk
from .config import KernelConfig
from .gates import (
    GateWeights,
    log_decay_sums,
    read_gate_weights,
    read_log_decays,
)
from .operands import Operand
from .scores import dot, scanned_before
from .shapes import Problem, Program


def pad_state(problem: Problem, state: jax.Array) -> jax.Array:
    """Converts [B, H, K, V] to the kernels' layout: [1, B * H, K, V], float32, padded by zeros.

    For several sequences in a row these are [N, H, K, V] and [1, (N + 1) * H, K, V].
    """
    count, heads, key_width, value_width = state.shape
    state = state.astype(jnp.float32).reshape(1, count * heads, key_width, value_width)
    keys, values = problem.state_shape
    rows = problem.rows // problem.segments - count * heads
    pads = (0, 0), (0, rows), (0, keys - key_width), (0, values - value_width)
    return jnp.pad(state, pads)


def unpad_state(spec: GlaSpec, state: jax.Array) -> jax.Array:
    """Converts [B * H, K, V] from the kernels' layout to [B, H, K, V]: see `pad_state`."""
    count, heads, key_width, value_width = spec.state_shape
    return state[: count * heads, :key_width, :value_width].reshape(spec.state_shape)


def border_states(
    spec: GlaSpec,
    config: KernelConfig,
    directions: Sequence[bool],
    k: Operand,
    v: Operand,
    log_decays: Sequence[Operand],
    given: jax.Array | None,
    *,
    gradient: bool,
) -> tuple[jax.Array, jax.Array]:
    """Computes states at the borders of segments, or their gradients.

    If the tokens are a part of a sequence, the first state, or the first gradient, comes from other
    parts: `spec.exchange` moves states with the scan, and gradients against it.

    Args:
        spec: The call.
        config: Tiling of the kernel.
        directions: For each direction, True if it is reversed.
        k: Keys, or queries with `gradient`.
        v: Values, or output gradients with `gradient`.
        log_decays: Log-decays or gates [B, T, H, K] of each direction.
        given: The first state, or the first gradient, [directions, B * H, K, V]; None for zeros.
        gradient: Compute gradients of states, which move against the scan.

    Returns:
        The values at the start of each segment [directions, B * H * segments, K, V] and at the end
        of the last one [directions, B * H, K, V]. Start and end are those of the movement.
    """
    problem = Problem.from_spec(spec, config)
    rows, segments = spec.batch * spec.heads, config.segments
    keys, values = problem.state_shape
    leading = (len(directions), problem.rows)
    results = launch(
        functools.partial(
            _states_kernel, problem=problem, directions=directions, gradient=gradient
        ),
        name="gla_border_states",
        programs=problem.programs * len(directions),
        inputs={"k": k, "v": v, "log_decays": list(log_decays)},
        outputs={
            "states": jax.ShapeDtypeStruct((*leading, keys, values), jnp.float32),
            "decays": jax.ShapeDtypeStruct((*leading, keys), jnp.float32),
        },
        num_warps=config.num_warps,
        num_stages=config.num_stages,
    )
    states = results["states"].reshape(len(directions), rows, segments, keys, values)
    decays = results["decays"].reshape(len(directions), rows, segments, keys, 1)
    backwards = tuple(reverse != gradient for reverse in directions)
    if spec.exchange is not None:
        given = _arriving(spec, problem, backwards, states, decays)
    starts, ends = [], []
    for number in range(len(directions)):
        state = jnp.zeros((rows, keys, values), jnp.float32) if given is None else given[number]
        begun, end = _pass_on(states[number], decays[number], state, backwards[number])
        starts.append(jnp.stack(begun, axis=1).reshape(rows * segments, keys, values))
        ends.append(end)
    return jnp.stack(starts), jnp.stack(ends)


def _pass_on(
    states: jax.Array, decays: jax.Array, state: jax.Array, backwards: bool
) -> tuple[list[jax.Array], jax.Array]:
    """Returns the state at the start of each segment, and that at the end of the last.

    Args:
        states: What each segment makes of zeros [rows, segments, K, V].
        decays: Decay of each segment [rows, segments, K, 1].
        state: At the start of the first segment [rows, K, V].
        backwards: The movement is from the last segment to the first.
    """
    segments = states.shape[1]
    begun = [state] * segments
    for segment in range(segments)[:: -1 if backwards else 1]:
        begun[segment] = state
        state = state * decays[:, segment] + states[:, segment]
    return begun, state


def _arriving(
    spec: GlaSpec,
    problem: Problem,
    backwards: tuple[bool, ...],
    states: jax.Array,
    decays: jax.Array,
) -> jax.Array:
    """Returns what arrives from other parts of the sequence [directions, B * H, K, V].

    Args:
        spec: The call, with an exchange.
        problem: The launch.
        backwards: For each direction, True if it moves from the last token to the first.
        states: What each segment makes of zeros [directions, B * H, segments, K, V].
        decays: Decay of each segment [directions, B * H, segments, K, 1].
    """
    assert spec.exchange is not None
    zeros = jnp.zeros_like(states[0, :, 0])
    own = [
        unpad_state(spec, _pass_on(states[number], decays[number], zeros, back)[1])
        for number, back in enumerate(backwards)
    ]
    whole = jnp.prod(decays, axis=2)[:, :, : spec.key_width, 0]
    whole = whole.reshape(len(backwards), spec.batch, spec.heads, spec.key_width)
    arriving = spec.exchange(jnp.stack(own), whole, backwards)
    return jnp.concatenate([pad_state(problem, state) for state in arriving])


def _states_kernel(
    ref: Refs, *, problem: Problem, directions: Sequence[bool], gradient: bool
) -> None:
    """Computes for each segment the state that its own tokens make, and the segment's decay.

    With `gradient`, "k" are queries and "v" output gradients, and the kernel computes the gradient
    of the state at the segment's start.
    """
    number = triton.program_id(0)
    which = number % len(directions)
    program = Program.from_number(problem, number // len(directions))

    def run(direction: int) -> None:
        reverse = directions[direction]
        weights = read_gate_weights(program, ref["log_decays"][direction])

        def step(n, carry):
            state, total = carry
            chunk = Chunk(program, program.chunk_number(n, reverse != gradient))
            state, end = _state_step(
                ref, chunk, direction, weights, state, reverse=reverse, gradient=gradient
            )
            return state, total * end

        state = jnp.zeros((problem.key_block, problem.value_block), jnp.float32)
        ones = jnp.ones((problem.key_block,), jnp.float32)
        state, total = jax.lax.fori_loop(0, problem.chunks, step, (state, ones))
        row = program.row
        triton.store(ref["states"], program.state_index(direction, row), state)
        triton.store(ref["decays"], (direction, row, jnp.arange(problem.key_block)), total)

    for direction in range(len(directions)):
        triton.when(which == direction)(functools.partial(run, direction))


def _state_step(
    ref: Refs,
    chunk: Chunk,
    direction: int,
    weights: GateWeights | None,
    state: Block,
    *,
    reverse: bool,
    gradient: bool,
) -> tuple[Block, Block]:
    """Returns the state [K, V] after one chunk and the chunk's decay [K]; exact for any decay.

    A token's key and value get the decays of the tokens scanned after it. With `gradient`, a
    token's query and output gradient get its own decay and those of the tokens scanned before it.
    """
    program = chunk.program
    problem = program.problem
    k = chunk.read(ref["k"], "K").astype(jnp.float32)
    v = chunk.read(ref["v"], "V")
    log_decays = read_log_decays(chunk, ref["log_decays"][direction], weights)
    if gradient:
        picked = scanned_before(problem.chunk, reverse, itself=True)
        k = k * problem.scale
    else:
        picked = scanned_before(problem.chunk, not reverse, itself=False)
    decay = triton.exp2(log_decay_sums(problem, picked, log_decays))
    k = (k * decay).astype(problem.operand_dtype)
    end = triton.exp2(jnp.sum(log_decays.values.astype(jnp.float32), axis=0) * log_decays.unit)
    return state * end[:, None] + dot(problem, k.T, v), end
