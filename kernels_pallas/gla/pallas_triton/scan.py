"""The scans on a GPU, forward and backward: the interface to the kernels for other operators.

Segments, and parts of a sequence on several devices, are handled here: their first states are
computed before the main kernel runs.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..spec import GlaSpec
from . import backward as backward_kernel
from . import forward as forward_kernel
from .config import KernelConfig
from .operands import Columns, Gates, ScanInputs
from .shapes import Problem
from .states import border_states, pad_state, unpad_state

__all__ = [
    "Columns",
    "Gates",
    "ScanInputs",
    "ScanOutputs",
    "backward",
    "backward_in_place",
    "forward",
]


class ScanOutputs(NamedTuple):
    """Outputs of the scans.

    Attributes:
        out: Outputs [B, T, H, V], one per direction if `config.split_directions`, else one.
        final_states: State [B, H, K, V] after the last token of each direction, or None.
        chunk_states: States before each chunk, in the kernels' layout, or None.
    """

    out: list[jax.Array]
    final_states: tuple[jax.Array, ...] | None
    chunk_states: jax.Array | None


def forward(
    spec: GlaSpec,
    config: KernelConfig,
    inputs: ScanInputs,
    initial_states: Sequence[jax.Array] | None = None,
    borders: jax.Array | None = None,
    *,
    chunk_states: bool,
) -> ScanOutputs:
    """Scans in the directions of a call.

    Args:
        spec: The call.
        config: Tiling of the kernels.
        inputs: Operands of the scans.
        initial_states: State [B, H, K, V] before the first token of each direction, or None.
        borders: First token of each sequence, and T, if there are several in a row of tokens.
        chunk_states: Also return the states before each chunk, which the backward pass reads.
    """
    initial = final = None
    if initial_states is not None:
        initial = _pad_states(Problem.from_spec(spec, config), initial_states)
    if config.segments > 1 or spec.exchange is not None:
        initial, final = border_states(
            spec,
            config,
            spec.directions,
            inputs.k,
            inputs.v,
            inputs.log_decays,
            initial,
            gradient=False,
        )
    results = forward_kernel.forward(
        spec,
        config,
        spec.directions,
        inputs,
        initial,
        borders,
        final_states=spec.return_final_state and final is None,
        chunk_states=chunk_states,
    )
    final_states = None
    if spec.return_final_state:
        final = results["final_states"] if final is None else final
        final_states = tuple(unpad_state(spec, state) for state in final)
    return ScanOutputs(results["out"], final_states, results["chunk_states"])


def backward(
    spec: GlaSpec,
    config: KernelConfig,
    inputs: ScanInputs,
    grad_out: jax.Array,
    grad_final_states: Sequence[jax.Array] | None,
    chunk_states: jax.Array,
    borders: jax.Array | None = None,
) -> tuple[ScanInputs, tuple[jax.Array, ...] | None]:
    """Computes the gradients of inputs that are whole arrays.

    Args:
        spec: The call.
        config: Tiling of the kernels; chunks and segments are those of the forward pass.
        inputs: Operands of the scans.
        grad_out: Gradient of the output [B, T, H, V].
        grad_final_states: Gradients of the final states [B, H, K, V], or None.
        chunk_states: States before each chunk, from the forward pass.
        borders: As of `forward`.

    Returns:
        Gradients of the inputs, and of the initial states [B, H, K, V] if the call has them.
    """
    final = start = None
    if grad_final_states is not None:
        final = _pad_states(Problem.from_spec(spec, config), grad_final_states)
    if config.segments > 1 or spec.exchange is not None:
        final, start = _border_gradients(spec, config, inputs, grad_out, final)
    grads, initial = backward_kernel.backward(
        spec,
        config,
        spec.directions,
        inputs,
        grad_out,
        chunk_states,
        final,
        borders,
        initial_states=spec.has_initial_state and start is None,
    )
    if not spec.has_initial_state:
        return grads, None
    start = initial if start is None else start
    assert start is not None
    return grads, tuple(unpad_state(spec, state) for state in start)


def backward_in_place(
    spec: GlaSpec,
    config: KernelConfig,
    inputs: ScanInputs,
    grad_out: jax.Array,
    chunk_states: jax.Array,
    into: jax.Array,
    borders: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Computes the gradients of inputs that are columns of one array [B, T, E].

    Args:
        spec: The call, without states.
        config: Tiling of the kernels; one program holds all values of a head and both directions.
        inputs: Columns of one array, and gates that share one kernel [rank, F].
        grad_out: Gradient of the output [B, T, H, V].
        chunk_states: States before each chunk, from the forward pass.
        into: [B, T, E], consumed. The gradients of q, k and v are written into their columns.
        borders: As of `forward`.

    Returns:
        `into` with these columns written, and the gradient [B, T, F] of the gates.
    """
    final = None
    if config.segments > 1 or spec.exchange is not None:
        final, _ = _border_gradients(spec, config, inputs, grad_out, None)
    return backward_kernel.backward_in_place(
        spec, config, spec.directions, inputs, grad_out, chunk_states, final, borders, into
    )


def _pad_states(problem: Problem, states: Sequence[jax.Array]) -> jax.Array:
    return jnp.concatenate([pad_state(problem, state) for state in states])


def _border_gradients(
    spec: GlaSpec,
    config: KernelConfig,
    inputs: ScanInputs,
    grad_out: jax.Array,
    final: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    return border_states(
        spec, config, spec.directions, inputs.q, grad_out, inputs.log_decays, final, gradient=True
    )
