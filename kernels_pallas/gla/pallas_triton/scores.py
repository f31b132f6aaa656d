"""Products within a chunk: sums over tokens, and scores that are exact for any decays."""

import jax
import jax.numpy as jnp

from ...core.types import Block
from .shapes import Problem


def dot(problem: Problem, a: Block, b: Block) -> Block:
    """Multiplies matrices and accumulates in float32; float32 operands are not rounded."""
    precision = jax.lax.Precision.HIGHEST if problem.exact_dtype else None
    return jax.lax.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def scanned_before(chunk: int, reverse: bool, *, itself: bool) -> Block:
    """Returns [C, C]: True at [i, j] if token j is scanned before token i, or is i and `itself`."""
    i = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 0)
    j = jax.lax.broadcasted_iota(jnp.int32, (chunk, chunk), 1)
    if reverse:
        i, j = j, i
    return i >= j if itself else i > j


def row_sums(problem: Problem, picked: Block, x: Block, parts: int) -> Block:
    """Returns sums [C, K] of the rows of x [C, K] that each row of `picked` [C, C] marks.

    The sums are matrix products. A bfloat16 product keeps 8 bits of x, so x is split into `parts`
    addends of 8 bits each.
    """
    x = x.astype(jnp.float32) if problem.exact_dtype or parts > 1 else x
    ones = picked.astype(problem.operand_dtype)
    if problem.exact_dtype:
        return dot(problem, ones, x)
    part = x.astype(jnp.bfloat16)
    total = dot(problem, ones, part)
    for _ in range(parts - 1):
        x = x - part.astype(jnp.float32)
        part = x.astype(jnp.bfloat16)
        total = total + dot(problem, ones, part)
    return total


def exact_scores(problem: Problem, reverse: bool, q: Block, k: Block, decays: Block) -> Block:
    """Computes scores [C, C] = sum_k q_ik k_jk prod_{s in (j, i]} decays_sk for any decays [C, K].

    Decays are only multiplied, never divided. The loop goes over the columns from the last scanned
    token to the first. `between` [C, K] holds the products of the decays between the column's token
    and every later one.
    """
    rows = jax.lax.broadcasted_iota(jnp.int32, (problem.chunk, 1), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, problem.chunk), 1)

    def column(step, carry):
        between, next_decay, scores = carry
        j = step if reverse else problem.chunk - 1 - step
        here = rows == j
        between = jnp.where(here, 1.0, between * next_decay)
        k_row = jnp.sum(jnp.where(here, k, 0.0), axis=0)[None, :]
        column_j = jnp.sum(q * between * k_row, axis=1)[:, None]
        next_decay = jnp.sum(jnp.where(here, decays, 0.0), axis=0)[None, :]
        return between, next_decay, jnp.where(columns == j, column_j, scores)

    zeros = jnp.zeros((problem.chunk, problem.key_block), jnp.float32)
    init = (zeros, jnp.ones((1, problem.key_block), jnp.float32))
    scores = jnp.zeros((problem.chunk, problem.chunk), jnp.float32)
    return jax.lax.fori_loop(0, problem.chunk, column, (*init, scores))[2]


def exact_gradients(
    problem: Problem, reverse: bool, q: Block, k: Block, decays: Block, grad_scores: Block
) -> tuple[Block, Block, Block]:
    """Computes the gradients of `exact_scores` for q and k, and q dq - k dk.

    The third adds up to the gradient of the sums of log-decays. It leaves out a token paired with
    itself: no decay lies between, and both terms are equal.
    """
    rows = jax.lax.broadcasted_iota(jnp.int32, (problem.chunk, 1), 0)
    columns = jax.lax.broadcasted_iota(jnp.int32, (1, problem.chunk), 1)
    itself = jnp.sum(jnp.where(rows == columns, grad_scores, 0.0), axis=1)[:, None]

    def column(step, carry):
        between, next_decay, grad_q, grad_k = carry
        j = step if reverse else problem.chunk - 1 - step
        here = rows == j
        between = jnp.where(here, 1.0, between * next_decay)
        column_j = jnp.sum(jnp.where(columns == j, grad_scores, 0.0), axis=1)[:, None]
        weights = jnp.where(here, 0.0, between * column_j)
        k_row = jnp.sum(jnp.where(here, k, 0.0), axis=0)[None, :]
        grad_q = grad_q + weights * k_row
        grad_k = jnp.where(here, jnp.sum(weights * q, axis=0)[None, :], grad_k)
        next_decay = jnp.sum(jnp.where(here, decays, 0.0), axis=0)[None, :]
        return between, next_decay, grad_q, grad_k

    zeros = jnp.zeros((problem.chunk, problem.key_block), jnp.float32)
    one = jnp.ones((1, problem.key_block), jnp.float32)
    _, _, grad_q, grad_k = jax.lax.fori_loop(0, problem.chunk, column, (zeros, one, zeros, zeros))
    grad_sums = q * grad_q - k * grad_k
    return grad_q + itself * k, grad_k + itself * q, grad_sums
