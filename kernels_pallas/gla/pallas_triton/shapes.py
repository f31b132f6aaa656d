"""The static shape of a launch, and the coordinates of one of its programs.

A program owns one head of one image, or one segment of its tokens, and walks over chunks of C
tokens. Axes inside of a kernel are powers of two: K and V are padded to `key_block` and
`value_block`, and elements read beyond them are zero.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ...core import triton
from ...core.integers import cdiv, next_power_of_two
from ...core.types import Block, Index, Ref
from ..spec import GlaSpec
from .config import KernelConfig

Scalar = int | jax.Array
"""An integer, known when tracing or traced."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """Static shape of a launch.

    Attributes:
        batch: B.
        tokens: T.
        heads: H.
        key_width: K.
        value_width: V.
        chunk: Tokens per chunk C.
        key_block: K padded to a power of two.
        value_block: Values per program, a power of two. If V is larger, programs share it.
        segments: Parts of the tokens; each part has its own programs.
        scale: Factor on the queries.
        gate_normalizer: If given, the log-decays are log_sigmoid(x) / gate_normalizer of gates x.
        strong_decays: A chunk may decay by more than the factored scores allow.
        exact_dtype: The inputs are float32, so nothing may be rounded to fewer bits.
        continues: The tokens are a part of a sequence, so states pass its ends in both directions.
        sequences: Number of sequences that lie side by side in the tokens, that of the tokens after
            the last border included; each has its own programs. None: each row is one sequence.
    """

    batch: int
    tokens: int
    heads: int
    key_width: int
    value_width: int
    chunk: int
    key_block: int
    value_block: int
    segments: int
    scale: float
    gate_normalizer: float | None
    strong_decays: bool
    exact_dtype: bool
    continues: bool = False
    sequences: int | None = None

    @classmethod
    def from_spec(cls, spec: GlaSpec, config: KernelConfig) -> "Problem":
        """Returns the shape of a call's launches.

        Raises:
            NotImplementedError: The tiling splits the tokens of a call with several sequences.
        """
        if spec.sequences is not None and config.segments > 1:
            raise NotImplementedError(
                f"cu_seqlens needs a config with segments=1, got {config.segments}"
            )
        exact_dtype = spec.dtype == jnp.float32
        promised = -math.inf if spec.min_log_decay is None else spec.min_log_decay * config.chunk
        return cls(
            batch=spec.batch,
            tokens=spec.tokens,
            heads=spec.heads,
            key_width=spec.key_width,
            value_width=spec.value_width,
            chunk=config.chunk,
            key_block=max(16, next_power_of_two(spec.key_width)),
            value_block=max(16, min(config.value_block, next_power_of_two(spec.value_width))),
            segments=config.segments,
            scale=spec.scale,
            gate_normalizer=spec.gate_normalizer,
            strong_decays=promised < _lowest_total(exact_dtype),
            exact_dtype=exact_dtype,
            continues=spec.exchange is not None,
            sequences=None if spec.sequences is None else spec.sequences + 1,
        )

    @property
    def rows(self) -> int:
        """Number of segments of all heads and images or sequences."""
        count = self.batch if self.sequences is None else self.sequences
        return count * self.heads * self.segments

    @property
    def value_blocks(self) -> int:
        """Number of programs that share the values of a head."""
        return cdiv(self.value_width, self.value_block)

    @property
    def programs(self) -> int:
        """Number of programs that one direction takes."""
        return self.rows * self.value_blocks

    @property
    def chunks(self) -> int:
        """Number of chunks per segment."""
        return cdiv(self.tokens, self.chunk * self.segments)

    @property
    def state_shape(self) -> tuple[int, int]:
        """Padded widths (K, V) of arrays of states."""
        return self.key_block, self.value_blocks * self.value_block

    @property
    def chunk_states_shape(self) -> tuple[int, ...]:
        """Shape of one direction's states before each chunk."""
        if self.sequences is None:
            return self.rows, self.chunks, *self.state_shape
        # The chunks of a sequence follow those of all before it: `Program.chunk_state_index`.
        return self.heads, self.tokens // self.chunk + self.sequences, *self.state_shape

    @property
    def operand_dtype(self) -> DTypeLike:
        """Type of the operands of matrix products."""
        return jnp.float32 if self.exact_dtype else jnp.bfloat16

    def too_strong(self, least_decay: Block) -> Block:
        """Returns True for a program that must run again with exact scores.

        Args:
            least_decay: The smallest decay of a chunk that the program found, possibly NaN.
        """
        return jnp.logical_not(least_decay >= math.exp(_lowest_total(self.exact_dtype)))


def _lowest_total(exact_dtype: bool) -> float:
    """Returns the lowest sum of log-decays over a chunk for which exp(-sum) may be a factor.

    The exponents of bfloat16 and float32 leave room for keys, values and sums of them beside
    exp(60). For float32 results the error of exp limits it, which grows with its argument.
    """
    return -20.0 if exact_dtype else -60.0


@dataclasses.dataclass(frozen=True)
class Program:
    """Coordinates of one program of a launch.

    Attributes:
        problem: The launch.
        image: Index of the image.
        sequence: Index of the image, or of the sequence if there are several in a row of tokens.
        segment: Index of the segment.
        value_block: Index of the block of values.
        head: Index of the head.
        start: First token of the sequence.
        end: Token after its last.
    """

    problem: Problem
    image: Scalar
    sequence: Scalar
    segment: Scalar
    value_block: Scalar
    head: Scalar
    start: Scalar
    end: Scalar

    @classmethod
    def from_number(cls, problem: Problem, number: Scalar, borders: Ref | None = None) -> "Program":
        """Returns a program from its number in the grid.

        Programs with neighbouring numbers share an image, whose heads are neighbours in memory.

        Args:
            problem: The launch.
            number: The number.
            borders: The first token of each sequence, and T; None if rows are sequences.
        """
        head = number % problem.heads
        rest = number // problem.heads
        value_block = rest % problem.value_blocks
        rest = rest // problem.value_blocks
        sequence, segment = rest // problem.segments, rest % problem.segments
        place = (segment, value_block, head)
        if borders is None:
            return cls(problem, sequence, sequence, *place, 0, problem.tokens)
        start, end = (triton.load(borders, (sequence + i,)) for i in range(2))
        return cls(problem, 0, sequence, *place, start, end)

    @property
    def row(self) -> Scalar:
        """Index into arrays with an entry per image or sequence, head and segment."""
        heads, segments = self.problem.heads, self.problem.segments
        return (self.sequence * heads + self.head) * segments + self.segment

    @property
    def chunks(self) -> Scalar:
        """Number of chunks that the program walks over."""
        if self.problem.sequences is None:
            return self.problem.chunks
        return (self.end - self.start + self.problem.chunk - 1) // self.problem.chunk

    def chunk_number(self, step: Scalar, reverse: bool) -> Scalar:
        """Returns the number of the chunk that a scan of the segment takes at `step`."""
        if reverse:
            step = self.chunks - 1 - step
        return self.segment * self.chunks + step

    def state_index(self, *leading: Scalar) -> Index:
        """Returns the index of the program's part [K, V] of an array of states [..., K, V]."""
        block = self.problem.value_block
        values = self.value_block * block + jnp.arange(block)[None, :]
        return *leading, jnp.arange(self.problem.key_block)[:, None], values

    def chunk_state_index(self, direction: int, chunk: Scalar) -> Index:
        """Returns the index of the program's part of a chunk's state.

        The array of states is [directions, rows, chunks per segment, K, V], or, for several
        sequences in a row, [directions, heads, chunks, K, V]. There the chunks of a sequence that
        starts at token s are numbered from s // C + its number, and none has two.
        """
        if self.problem.sequences is not None:
            first = self.start // self.problem.chunk + self.sequence
            return self.state_index(direction, self.head, first + chunk)
        within = chunk - self.segment * self.problem.chunks
        return self.state_index(direction, self.row, within)
