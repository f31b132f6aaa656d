"""Forward kernel: outputs, and the states that the backward pass and later tokens need."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from ...core import triton
from ...core.named_refs import Refs
from ...core.types import Block, Tree
from ..spec import GlaSpec
from .chunk import Chunk
from .config import KernelConfig
from .driver import Direction, Scan, launch_scans
from .gates import (
    log_decay_sums,
    read_gate_weights,
    read_log_decays,
)
from .operands import ScanInputs
from .scores import dot, exact_scores, scanned_before
from .shapes import Problem, Program


def forward(
    spec: GlaSpec,
    config: KernelConfig,
    directions: Sequence[bool],
    inputs: ScanInputs,
    initial_states: jax.Array | None,
    borders: jax.Array | None,
    *,
    final_states: bool,
    chunk_states: bool,
) -> dict[str, Tree]:
    """Runs the forward kernel.

    Args:
        spec: The call.
        config: Tiling of the kernel.
        directions: For each direction, True if it is reversed.
        inputs: Operands of the scans.
        initial_states: States [directions, B * H * segments, K, V] at the start of each segment,
            padded as by `pad_state`, or None for zeros.
        borders: First token of each sequence, and T, or None if rows are sequences.
        final_states: Also return the state at the end of each segment.
        chunk_states: Also return the state before each chunk.

    Returns:
        "out", a list of outputs [B, T, H, V], one per direction if `config.split_directions`, else
        one; "final_states" in the layout of `initial_states`, or None; "chunk_states"
        [directions, *problem.chunk_states_shape], or None.
    """
    problem = Problem.from_spec(spec, config)
    copies = len(directions) if config.split_directions else 1
    states = (len(directions), problem.rows, *problem.state_shape)
    states_of_chunks = (len(directions), *problem.chunk_states_shape)
    shape = jax.ShapeDtypeStruct
    outputs = {
        "out": [shape((spec.batch, spec.tokens, spec.heads, spec.value_width), spec.dtype)]
        * copies,
        "final_states": shape(states, jnp.float32) if final_states else None,
        "chunk_states": shape(states_of_chunks, problem.operand_dtype) if chunk_states else None,
    }
    return launch_scans(
        _make_scan,
        name="gla_forward",
        problem=problem,
        config=config,
        directions=directions,
        inputs={**inputs._asdict(), "initial_states": initial_states, "borders": borders},
        outputs=outputs,
    )


def _make_scan(ref: Refs, program: Program, exact: bool) -> Scan:
    problem = program.problem

    def scan(direction: Direction) -> Block:
        index = program.state_index(direction.number, program.row)
        if ref["initial_states"] is not None:
            state = triton.load(ref["initial_states"], index)
        else:
            state = jnp.zeros((problem.key_block, problem.value_block), jnp.float32)
        state, least = _scan(ref, program, direction, state, exact=exact)
        if ref["final_states"] is not None:
            triton.store(ref["final_states"], index, state)
        return least

    return scan


def _scan(
    ref: Refs, program: Program, direction: Direction, state: Block, *, exact: bool
) -> tuple[Block, Block]:
    """Scans a segment in one direction, and writes its outputs or adds them to what is there.

    v is only ever the right operand of products over tokens. Using it in two layouts would disable
    prefetching.

    Args:
        ref: References by name.
        program: The program.
        direction: Direction of the scan.
        state: State [K, V] at the start.
        exact: Use the form of the scores that is right for any decay. The other form is right if
            the smallest decay of a chunk is not `Problem.too_strong`.

    Returns:
        The state [K, V] at the end, and the smallest decays of a chunk [K].
    """
    problem, reverse = program.problem, direction.reverse
    log_decay_ref, out_ref = ref["log_decays"][direction.number], ref["out"][direction.output]
    causal = scanned_before(problem.chunk, reverse, itself=True)
    weights = read_gate_weights(program, log_decay_ref)

    def step(n, carry):
        state, least = carry
        number = program.chunk_number(n, reverse)
        chunk = Chunk(program, number)
        q = triton.widen(chunk.read(ref["q"], "K"))
        k = triton.widen(chunk.read(ref["k"], "K"))
        v = chunk.read(ref["v"], "V")
        log_decays = read_log_decays(chunk, log_decay_ref, weights)
        if direction.add:  # early, because the load takes long
            so_far = chunk.read(out_ref, "V")
        through = log_decay_sums(problem, causal, log_decays)  # [C, K]
        decay = triton.exp2(through)
        q_in = (q * (decay * problem.scale)).astype(problem.operand_dtype)
        end = jnp.min(decay, axis=0)  # decays only shrink: the smallest is that of the whole chunk
        if exact:
            after = scanned_before(problem.chunk, not reverse, itself=False)
            k_out = k * triton.exp2(log_decay_sums(problem, after, log_decays))
            scores = exact_scores(problem, reverse, q * problem.scale, k, log_decays.decays())
        else:
            k_out = k * triton.exp2(-through)
            scores = dot(problem, q_in, k_out.astype(problem.operand_dtype).T)
            scores = jnp.where(causal, scores, 0.0)
        k_out = k_out.astype(problem.operand_dtype)
        if ref["chunk_states"] is not None:
            index = program.chunk_state_index(direction.number, number)
            triton.store(ref["chunk_states"], index, state)
        out = dot(problem, q_in, state.astype(problem.operand_dtype))
        out += dot(problem, scores.astype(problem.operand_dtype), v)
        if direction.add:
            out += so_far.astype(jnp.float32)
        chunk.write(out_ref, "V", out)
        update = dot(problem, k_out.T, v)  # [K, V]
        state = state * end[:, None] + update if exact else (state + update) * end[:, None]
        return state, jnp.minimum(least, end)

    ones = jnp.ones((problem.key_block,), jnp.float32)
    return jax.lax.fori_loop(0, program.chunks, step, (state, ones))
