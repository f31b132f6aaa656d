"""Log-decays of a chunk: read as they are, or computed from gates; their sums; their gradients."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core import triton
from ...core.integers import next_power_of_two
from ...core.triton import LOG2_E
from ...core.types import Block
from .chunk import Chunk
from .operands import Gates, Operand
from .scores import dot, row_sums
from .shapes import Problem, Program

# Replaces -inf: its exponential is zero too, but sums and products of it are finite.
LOWEST_LOG_DECAY = -9984.0
# The same for gates, which are divided by a normalizer of at most `spec.MAX_GATE_NORMALIZER`.
LOWEST_LOG2_SIGMOID = -60000.0


class LogDecays(NamedTuple):
    """Finite log-decays of a chunk [C, K]: `values` times `unit` are base-2 logarithms."""

    values: Block
    unit: float

    def decays(self) -> Block:
        """Returns the decay of each token [C, K], float32."""
        return jnp.exp2(self.values.astype(jnp.float32) * self.unit)


class GateWeights(NamedTuple):
    """Weights that make a head's gates from features.

    Attributes:
        kernel: [rank, K].
        bias: [1, K], times log2(e).
    """

    kernel: Block
    bias: Block


def read_gate_weights(program: Program, operand: Operand) -> GateWeights | None:
    """Reads the weights of the program's head, once for all chunks; None for plain log-decays."""
    if not isinstance(operand, Gates):
        return None
    problem = program.problem
    rank = max(16, next_power_of_two(operand.rank))
    features = jnp.arange(rank)[:, None]
    keys = jnp.arange(problem.key_block)[None, :]
    columns = operand.column + program.head * problem.key_width + keys
    padded = problem.key_width != problem.key_block
    mask = None
    if padded or rank != operand.rank:
        mask = (features < operand.rank) & (keys < problem.key_width)
    kernel = triton.load(operand.kernel, (features, columns), mask)
    bias = triton.load(operand.bias, (columns,), keys < problem.key_width if padded else None)
    return GateWeights(kernel, bias.astype(jnp.float32) * LOG2_E)


def read_log_decays(chunk: Chunk, operand: Operand, weights: GateWeights | None) -> LogDecays:
    """Reads the log-decays of a chunk, or computes them from gates and their `weights`.

    Rows outside of the array have no decay, or the decay that the gates' bias makes. It does not
    matter: keys and values are zero there, and no token's state is read, unless the state passes
    the end of the array to other parts of the sequence.
    """
    if weights is None:
        values = chunk.read(operand, "K")
        lowest = jnp.array(LOWEST_LOG_DECAY, values.dtype)
        return LogDecays(jnp.maximum(values, lowest), LOG2_E)
    program = chunk.program
    normalizer = program.problem.gate_normalizer
    assert isinstance(operand, Gates)
    assert normalizer is not None
    features = jnp.arange(weights.kernel.shape[0])[None, :]
    mask = chunk.mask(features, operand.rank)
    index = (program.image, chunk.rows, operand.start + features)
    x = triton.load(operand.array, index, mask)
    # log2(sigmoid(gates)), without overflow
    gates = dot(program.problem, x, weights.kernel) * LOG2_E + weights.bias
    small = triton.exp2(-jnp.abs(gates))
    values = jnp.minimum(gates, 0.0) - triton.log2(1.0 + small)
    if program.problem.continues and chunk.inside is not None:
        values = jnp.where(chunk.inside, values, 0.0)
    return LogDecays(jnp.maximum(values, LOWEST_LOG2_SIGMOID), 1 / normalizer)


def gate_gradient(program: Program, log_decays: LogDecays, grad: Block) -> Block:
    """Returns the gradient [C, K] of the gates, if there are any, from that of the log-decays."""
    if program.problem.gate_normalizer is None:
        return grad
    sigmoid = triton.exp2(log_decays.values)
    return grad * ((1.0 - sigmoid) * log_decays.unit)


def log_decay_sums(problem: Problem, picked: Block, log_decays: LogDecays) -> Block:
    """Returns sums of log-decays [C, K] in base 2, so that exp2 of them are decays.

    Next to bfloat16 keys and queries, the 11 bits that float16 keeps of a log-decay are enough.

    Args:
        problem: The launch.
        picked: [C, C]; row i marks the tokens that sum i adds.
        log_decays: Log-decays of the chunk.
    """
    values = log_decays.values
    if not problem.exact_dtype and values.dtype == jnp.float32:
        ones, values = picked.astype(jnp.float16), values.astype(jnp.float16)
        sums = jax.lax.dot(ones, values, preferred_element_type=jnp.float32)
    else:
        sums = row_sums(problem, picked, values, 1)
    return sums * log_decays.unit
