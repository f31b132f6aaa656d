"""The backward kernel's walk over a segment: gradients chunk by chunk. README.md derives them."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core import triton
from ...core.named_refs import Refs
from ...core.types import Block
from .chunk import Chunk
from .driver import Direction
from .gates import (
    GateWeights,
    LogDecays,
    gate_gradient,
    log_decay_sums,
    read_gate_weights,
    read_log_decays,
)
from .operands import Operand
from .scores import (
    dot,
    exact_gradients,
    exact_scores,
    row_sums,
    scanned_before,
)
from .shapes import Program, Scalar


class Gradients(NamedTuple):
    """Gradients of the inputs that one direction writes, or adds to."""

    q: Operand
    k: Operand
    v: Operand
    log_decay: Operand


class _ChunkInputs(NamedTuple):
    """Inputs of one chunk.

    Attributes:
        q: [C, K], float32.
        k: [C, K], float32.
        v: [C, V].
        grad_out: Gradient of the output [C, V].
        log_decays: Log-decays of the chunk.
        state: State [K, V] before the chunk.
    """

    q: Block
    k: Block
    v: Block
    grad_out: Block
    log_decays: LogDecays
    state: Block


class _Keys(NamedTuple):
    """Decayed keys of one chunk, and what meets them.

    Attributes:
        factor: Decays [C, K] of the keys.
        k_out: k times `factor`, as an operand of products.
        grad_end: Gradient [K, V] of the state that `k_out` adds to.
        scores_t: Transposed scores [C, C].
        decays: Decay of each token [C, K]; None for factored scores.
    """

    factor: Block
    k_out: Block
    grad_end: Block
    scores_t: Block
    decays: Block | None


class _Triangles(NamedTuple):
    """Order of the tokens i and j of a chunk: [C, C] at [i, j].

    Attributes:
        causal: True if j is scanned before i, or is i.
        before: True if j is scanned before i.
        not_before: True if j is not scanned before i.
    """

    causal: Block
    before: Block
    not_before: Block


class _Queries(NamedTuple):
    """Decayed queries of one chunk.

    Attributes:
        factor: Decays [C, K] of the queries, times the scale.
        q_in: q times `factor`, as an operand of products.
    """

    factor: Block
    q_in: Block


@dataclasses.dataclass(frozen=True)
class BackwardScan:
    """A walk over a segment against the scan, which writes or adds the gradients of each chunk.

    Attributes:
        program: The program.
        key_gradients: The program that says where gradients of keys' width are.
        ref: References by name.
        grads: Gradients to write.
        direction: Direction of the scan.
        exact: Use the form of the scores that is right for any decay.
        starts_empty: The state at the start is zero.
    """

    program: Program
    key_gradients: Program
    ref: Refs
    grads: Gradients
    direction: Direction
    exact: bool
    starts_empty: bool

    def run(self, grad_state: Block) -> tuple[Block, Block]:
        """Walks from the segment's end to its start.

        Takes and returns the gradient of the state [K, V]. Also returns the smallest decays of a
        chunk [K].
        """
        problem, reverse = self.program.problem, self.direction.reverse
        order = _Triangles(
            causal=scanned_before(problem.chunk, reverse, itself=True),
            before=scanned_before(problem.chunk, reverse, itself=False),
            not_before=scanned_before(problem.chunk, not reverse, itself=True),
        )
        weights = read_gate_weights(self.program, self.ref["log_decays"][self.direction.number])

        def step(n, carry):
            grad_state, least = carry
            number = self.program.chunk_number(n, not reverse)
            grad_state, end = self._step(number, order, weights, grad_state)
            return grad_state, jnp.minimum(least, end)

        ones = jnp.ones((problem.key_block,), jnp.float32)
        return jax.lax.fori_loop(0, self.program.chunks, step, (grad_state, ones))

    def _step(
        self, number: Scalar, order: _Triangles, weights: GateWeights | None, grad_state: Block
    ) -> tuple[Block, Block]:
        """Writes the gradients of one chunk; returns that of the state before, and the decay."""
        problem = self.program.problem
        chunk = Chunk(self.program, number)
        x = self._read(chunk, number, weights)
        key_chunk = Chunk(self.key_gradients, number)
        if self.direction.add:  # early, because the loads take long
            so_far = (
                key_chunk.read(self.grads.q, "K"),
                key_chunk.read(self.grads.k, "K"),
                chunk.read(self.grads.v, "V"),
            )
        through = log_decay_sums(problem, order.causal, x.log_decays)
        decay = triton.exp2(through)
        end = jnp.min(decay, axis=0)
        factor = decay * problem.scale
        queries = _Queries(factor, (x.q * factor).astype(problem.operand_dtype))
        decayed = grad_state * end[:, None]
        grad_scores = jnp.where(order.causal, dot(problem, x.grad_out, x.v.T), 0.0)
        keys = self._keys(x, queries, order, through, grad_state, decayed)
        grad_v = dot(problem, keys.scores_t.astype(problem.operand_dtype), x.grad_out)
        grad_v += dot(problem, keys.k_out, keys.grad_end)
        q_across = dot(problem, x.grad_out, x.state.T)  # [C, K]
        k_across = dot(problem, x.v, keys.grad_end.T)  # [C, K]
        grad_q, grad_k, within = self._key_gradients(
            x, queries, keys, order, grad_scores, q_across, k_across
        )
        # Every pair of tokens that a decay lies between, and none that cancels: see README.md.
        grad_log_decay = jnp.sum(x.state.astype(jnp.float32) * decayed, axis=1)[None, :]
        across = triton.widen(queries.q_in) * q_across
        grad_log_decay += row_sums(problem, order.not_before, within + across, 2)
        across = triton.widen(keys.k_out) * k_across
        grad_log_decay += row_sums(problem, order.before, across, 1)
        if self.starts_empty:  # the first decay has nothing to act on
            first = self.program.end - 1 if self.direction.reverse else self.program.start
            grad_log_decay = jnp.where(chunk.rows == first, 0.0, grad_log_decay)
        if self.direction.add:
            grad_q += so_far[0].astype(jnp.float32)
            grad_k += so_far[1].astype(jnp.float32)
            grad_v += so_far[2].astype(jnp.float32)
        key_chunk.write(self.grads.q, "K", grad_q)
        key_chunk.write(self.grads.k, "K", grad_k)
        chunk.write(self.grads.v, "V", grad_v)
        grad_gates = gate_gradient(self.program, x.log_decays, grad_log_decay)
        key_chunk.write(self.grads.log_decay, "K", grad_gates)
        return decayed + dot(problem, queries.q_in.T, x.grad_out), end

    def _read(self, chunk: Chunk, number: Scalar, weights: GateWeights | None) -> _ChunkInputs:
        """Reads the inputs of a chunk."""
        ref, direction = self.ref, self.direction.number
        return _ChunkInputs(
            q=chunk.read(ref["q"], "K").astype(jnp.float32),
            k=chunk.read(ref["k"], "K").astype(jnp.float32),
            v=chunk.read(ref["v"], "V"),
            grad_out=chunk.read(ref["grad_out"], "V"),
            log_decays=read_log_decays(chunk, ref["log_decays"][direction], weights),
            state=triton.load(
                ref["chunk_states"], self.program.chunk_state_index(direction, number)
            ),
        )

    def _keys(
        self,
        x: _ChunkInputs,
        queries: _Queries,
        order: _Triangles,
        through: Block,
        grad_state: Block,
        decayed: Block,
    ) -> _Keys:
        """Computes decayed keys and the scores."""
        problem, reverse = self.program.problem, self.direction.reverse
        operand = problem.operand_dtype
        if self.exact:
            after = scanned_before(problem.chunk, not reverse, itself=False)
            factor = triton.exp2(log_decay_sums(problem, after, x.log_decays))
            k_out = (x.k * factor).astype(operand)
            grad_end = grad_state.astype(operand)
            decays = x.log_decays.decays()
            scores = exact_scores(problem, reverse, x.q * problem.scale, x.k, decays)
            return _Keys(factor, k_out, grad_end, scores.T, decays)
        factor = triton.exp2(-through)
        k_out = (x.k * factor).astype(operand)
        grad_end = decayed.astype(operand)
        scores_t = jnp.where(order.not_before, dot(problem, k_out, queries.q_in.T), 0.0)
        return _Keys(factor, k_out, grad_end, scores_t, None)

    def _key_gradients(
        self,
        x: _ChunkInputs,
        queries: _Queries,
        keys: _Keys,
        order: _Triangles,
        grad_scores: Block,
        q_across: Block,
        k_across: Block,
    ) -> tuple[Block, Block, Block]:
        """Computes the gradients of q and k, and q dq - k dk of the pairs within the chunk."""
        problem, widen = self.program.problem, triton.widen
        operand = problem.operand_dtype
        if keys.decays is not None:
            q_within, k_within, within = exact_gradients(
                problem,
                self.direction.reverse,
                x.q * problem.scale,
                x.k,
                keys.decays,
                grad_scores,
            )
            grad_q = queries.factor * q_across + problem.scale * q_within
            return grad_q, keys.factor * k_across + k_within, within
        grad_scores_t = jnp.where(order.not_before, dot(problem, x.v, x.grad_out.T), 0.0)
        q_within = dot(problem, grad_scores.astype(operand), keys.k_out)
        k_within = dot(problem, grad_scores_t.astype(operand), queries.q_in)
        within = widen(queries.q_in) * q_within - widen(keys.k_out) * k_within
        grad_q = queries.factor * (q_across + q_within)
        return grad_q, keys.factor * (k_across + k_within), within
