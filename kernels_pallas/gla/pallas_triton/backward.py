"""Launches the backward kernel, which computes the gradients of all inputs."""

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from ...core import triton
from ...core.named_refs import Refs
from ...core.types import Block, Tree
from ..spec import GlaSpec
from .backward_scan import BackwardScan, Gradients
from .config import KernelConfig
from .driver import Direction, Scan, launch_scans
from .operands import Columns, Gates, ScanInputs
from .shapes import Problem, Program


def backward(
    spec: GlaSpec,
    config: KernelConfig,
    directions: Sequence[bool],
    inputs: ScanInputs,
    grad_out: jax.Array,
    chunk_states: jax.Array,
    grad_final_states: jax.Array | None,
    borders: jax.Array | None,
    *,
    initial_states: bool,
) -> tuple[ScanInputs, jax.Array | None]:
    """Runs the backward kernel on inputs that are whole arrays.

    Args:
        spec: The call.
        config: Tiling of the kernel.
        directions: For each direction, True if it is reversed.
        inputs: Operands of the scans.
        grad_out: Gradient of the output [B, T, H, V].
        chunk_states: States before each chunk, as the forward kernel returns them.
        grad_final_states: Gradients of the states at the end of each segment
            [directions, B * H * segments, K, V], or None.
        borders: First token of each sequence, and T, or None if rows are sequences.
        initial_states: Also return the gradients of the states at the start of each segment.

    Returns:
        Gradients of the inputs, and of the states at the start, or None.
    """
    problem = Problem.from_spec(spec, config)
    q, k, v, log_decays = inputs
    copies = len(directions) if config.split_directions else 1
    # Gradients of keys' width are sums over values: each block of values has its own part.
    blocks = problem.value_blocks
    keys = (blocks * spec.batch, *q.shape[1:])
    shape = jax.ShapeDtypeStruct

    def key_array(x):
        return shape(keys, x.dtype if blocks == 1 else jnp.float32)

    states = (len(directions), problem.rows, *problem.state_shape)
    outputs = {
        "sums": [(key_array(q), key_array(k), shape(v.shape, v.dtype))] * copies,
        "log_decay_gradients": [key_array(x) for x in log_decays],
        "initial_gradients": shape(states, jnp.float32) if initial_states else None,
    }

    def gradients(ref, direction):
        grad_q, grad_k, grad_v = ref["sums"][direction.output]
        return Gradients(grad_q, grad_k, grad_v, ref["log_decay_gradients"][direction.number])

    results = launch_scans(
        functools.partial(_make_scan, gradients=gradients, starts_empty=_starts_empty(spec)),
        name="gla_backward",
        problem=problem,
        config=config,
        directions=directions,
        inputs=_inputs(inputs, grad_out, chunk_states, grad_final_states, borders),
        outputs=outputs,
    )

    sums = zip(*results["sums"], strict=True)
    grad_q, grad_k, grad_v = (
        _add_parts(parts, x) for parts, x in zip(sums, (q, k, v), strict=True)
    )
    grad_log_decays = [
        _add_parts([part], x)
        for part, x in zip(results["log_decay_gradients"], log_decays, strict=True)
    ]
    return ScanInputs(grad_q, grad_k, grad_v, tuple(grad_log_decays)), results["initial_gradients"]


def _add_parts(parts: Sequence[jax.Array], like: jax.Array) -> jax.Array:
    """Adds arrays [blocks * B, T, H, K or V] of blocks of values and of directions in float32."""
    parts = [part for x in parts for part in x.reshape(-1, *like.shape)]
    total = parts[0]
    for part in parts[1:]:
        total = total.astype(jnp.float32) + part.astype(jnp.float32)
    return total.astype(like.dtype)


def backward_in_place(
    spec: GlaSpec,
    config: KernelConfig,
    directions: Sequence[bool],
    inputs: ScanInputs,
    grad_out: jax.Array,
    chunk_states: jax.Array,
    grad_final_states: jax.Array | None,
    borders: jax.Array | None,
    into: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Runs the backward kernel on inputs that are columns of one array.

    Args:
        spec: The call. One program must hold all values of a head.
        config: Tiling of the kernel, with both directions in one program.
        directions: For each direction, True if it is reversed.
        inputs: Columns of one array [B, T, E], and gates whose features are columns of it and which
            share one kernel [rank, F].
        grad_out: Gradient of the output [B, T, H, V].
        chunk_states: States before each chunk, as the forward kernel returns them.
        grad_final_states: Gradients of the states at the end of each segment, or None.
        borders: As of `backward`.
        into: [B, T, E], consumed. The gradients of q, k and v are written into their columns.

    Returns:
        `into` with these columns written, and the gradient [B, T, F] of the gates.

    Raises:
        ValueError: The tiling splits the values of a head or the directions.
    """
    problem = Problem.from_spec(spec, config)
    if problem.value_blocks > 1 or config.split_directions:
        raise ValueError(
            f"{config} splits a head's values or the directions, whose gradients share one array: "
            f"use value_block >= {spec.value_width} and split_directions=False"
        )
    gates = [x for x in inputs.log_decays if isinstance(x, Gates)]
    logits = (*into.shape[:2], gates[0].kernel.shape[1])

    def gradients(ref, direction):
        q, k, v = (Columns(ref["array"], x.start) for x in inputs[:3])
        return Gradients(q, k, v, Columns(ref["logits"], gates[direction.number].column))

    results = launch_scans(
        functools.partial(_make_scan, gradients=gradients, starts_empty=_starts_empty(spec)),
        name="gla_backward",
        problem=problem,
        config=config,
        directions=directions,
        inputs=_inputs(inputs, grad_out, chunk_states, grad_final_states, borders),
        outputs={
            "array": jax.ShapeDtypeStruct(into.shape, into.dtype),
            "logits": jax.ShapeDtypeStruct(logits, into.dtype),
        },
        start_from={"array": into},
    )
    return results["array"], results["logits"]


def _starts_empty(spec: GlaSpec) -> bool:
    """Returns whether the scan starts from a state of zeros, as far as is known when tracing."""
    return not spec.has_initial_state and spec.exchange is None


def _inputs(
    inputs: ScanInputs,
    grad_out: jax.Array,
    chunk_states: jax.Array,
    grad_final_states: jax.Array | None,
    borders: jax.Array | None,
) -> dict[str, Tree]:
    return {
        "q": inputs.q,
        "k": inputs.k,
        "v": inputs.v,
        "grad_out": grad_out,
        "log_decays": inputs.log_decays,
        "chunk_states": chunk_states,
        "final_gradients": grad_final_states,
        "borders": borders,
    }


def _make_scan(
    ref: Refs,
    program: Program,
    exact: bool,
    *,
    gradients: Callable[[Refs, Direction], Gradients],
    starts_empty: bool,
) -> Scan:
    problem = program.problem
    # The program writes gradients of keys' width into the part of its block of values.
    key_gradients = dataclasses.replace(
        program, image=program.image + program.value_block * problem.batch
    )

    def scan(direction: Direction) -> Block:
        index = program.state_index(direction.number, program.row)
        if ref["final_gradients"] is not None:
            grad_state = triton.load(ref["final_gradients"], index)
        else:
            grad_state = jnp.zeros((problem.key_block, problem.value_block), jnp.float32)
        backward_scan = BackwardScan(
            program, key_gradients, ref, gradients(ref, direction), direction, exact, starts_empty
        )
        grad_state, least = backward_scan.run(grad_state)
        if ref.get("initial_gradients") is not None:
            triton.store(ref["initial_gradients"], index, grad_state)
        return least

    return scan
