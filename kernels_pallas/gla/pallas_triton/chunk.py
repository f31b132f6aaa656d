"""Reads and writes the rows of one chunk."""

import jax.numpy as jnp

from ...core import triton
from ...core.types import Block, Index, Mask, Ref
from .operands import Columns, Operand
from .shapes import Program, Scalar


class Chunk:
    """The rows of one chunk of operands [B, T, H, K or V].

    Rows past T, and those of other sequences, are never accessed.

    Attributes:
        program: The program that the chunk belongs to.
        rows: Token numbers [C, 1].
        inside: True for rows of the sequence, or None if all are.
    """

    def __init__(self, program: Program, number: Scalar):
        problem = program.problem
        self.program = program
        rows = number * problem.chunk + jnp.arange(problem.chunk)[:, None]
        self.rows = rows if problem.sequences is None else program.start + rows
        keys = jnp.arange(problem.key_block)[None, :]
        block = problem.value_block
        values = program.value_block * block + jnp.arange(block)[None]
        inside = None
        if problem.sequences is not None or problem.tokens % (problem.chunk * problem.segments):
            inside = self.rows < program.end
        self.inside = inside
        self._columns = {"K": (keys, problem.key_width), "V": (values, problem.value_width)}
        self._mask = {axis: self.mask(*columns) for axis, columns in self._columns.items()}

    def mask(self, columns: Block, width: int) -> Mask:
        """Returns the mask [C, columns] of rows inside of the array and columns below `width`."""
        padded = width % columns.shape[1] != 0
        mask = triton.both(self.inside, columns < width if padded else None)
        if mask is None:
            return None
        return jnp.broadcast_to(mask, (self.program.problem.chunk, columns.shape[1]))

    def _locate(self, operand: Operand, axis: str) -> tuple[Ref, Index, Mask]:
        """Returns the operand's reference, and index and mask of the chunk's rows in it."""
        columns, width = self._columns[axis]
        image, head = self.program.image, self.program.head
        if isinstance(operand, Columns):
            index = (image, self.rows, operand.start + head * width + columns)
            return operand.array, index, self._mask[axis]
        return operand, (image, self.rows, head, columns), self._mask[axis]

    def read(self, operand: Operand, axis: str) -> Block:
        """Reads [C, K] (`axis` "K") or [C, V] (`axis` "V"); elements outside are zero."""
        return triton.load(*self._locate(operand, axis))

    def write(self, operand: Operand, axis: str, value: Block) -> None:
        """Writes [C, K] or [C, V]."""
        ref, index, mask = self._locate(operand, axis)
        triton.store(ref, index, value, mask)
