"""Rows that the programs of the blend work on; a row is the V channels of one head of one token."""

import dataclasses
import math

import jax.numpy as jnp

from ...core import triton
from ...core.integers import cdiv, next_power_of_two
from ...core.types import Block, Index, Ref
from ..spec import MixerSpec
from .config import BlendConfig


def padded_width(spec: MixerSpec) -> int:
    """Returns V rounded up to a power of two."""
    return next_power_of_two(spec.value_width)


class Rows:
    """Some rows of arrays [B * T * H, V], of [B * T, 3 D + R] and of vectors.

    Attributes:
        spec: The call.
        head: Head of each row [rows, 1].
    """

    def __init__(self, spec: MixerSpec, first: Block, count: int, ragged: bool):
        """Describes `count` rows from `first` on; if `ragged`, some may be past the last."""
        self.spec = spec
        rows = first + jnp.arange(count)[:, None]
        self._columns = jnp.arange(padded_width(spec))[None, :]
        token, self.head = rows // spec.heads, rows % spec.heads
        self._channels = self.head * spec.value_width + self._columns
        gate = spec.starts["gate"] + self._channels
        self._plain = (rows, self._columns)
        self._gate = (token, gate)
        mask = self._inside()
        if ragged:
            mask = triton.both(rows < spec.rows, mask)
        if mask is not None:
            mask = jnp.broadcast_to(mask, (count, padded_width(spec)))
        self._mask = mask

    def _inside(self) -> Block | None:
        """Returns the mask [1, columns] of channels below V, or None if all are."""
        padded = padded_width(self.spec) != self.spec.value_width
        return self._columns < self.spec.value_width if padded else None

    def _load(self, ref: Ref, index: Index, mask: Block | None) -> Block:
        value = triton.load(ref, index, mask)
        return value.astype(jnp.float32)

    def read(self, ref: Ref) -> Block:
        """Reads [rows, V] in float32; elements outside are zero."""
        return self._load(ref, self._plain, self._mask)

    def read_gate(self, projected_ref: Ref) -> Block:
        """Reads the gate's logits [rows, V] in float32, which are columns of `projected`."""
        return self._load(projected_ref, self._gate, self._mask)

    def read_bias(self, ref: Ref) -> Block:
        """Reads [rows, V] of a bias [D] in float32."""
        return self._load(ref, (self._channels,), self._mask)

    def read_scale(self, ref: Ref) -> Block:
        """Reads a scale [V] as [1, V] in float32."""
        return self._load(ref, (self._columns,), self._inside())

    def write(self, ref: Ref, value: Block) -> None:
        """Writes [rows, V]."""
        triton.store(ref, self._plain, value, self._mask)

    def write_gate(self, projected_ref: Ref, value: Block) -> None:
        """Writes [rows, V] to the gate's columns of `projected`."""
        triton.store(projected_ref, self._gate, value, self._mask)


@dataclasses.dataclass(frozen=True)
class RowLoop:
    """The loop of each program over blocks of rows. Programs take neighbouring blocks at each step.

    The rows of a program's block have the same heads at each step.

    Attributes:
        spec: The call.
        rows: Rows per block.
        programs: Number of programs.
        steps: Number of steps.
    """

    spec: MixerSpec
    rows: int
    programs: int
    steps: int

    @classmethod
    def from_config(cls, spec: MixerSpec, config: BlendConfig) -> "RowLoop":
        """Returns the loop of a kernel."""
        count = max(1, config.block // padded_width(spec))
        blocks = cdiv(spec.rows, count)
        whole = spec.heads // math.gcd(spec.heads, count)
        programs = cdiv(min(blocks, config.programs), whole) * whole
        return cls(spec, count, programs, cdiv(blocks, programs))

    def block(self, program: Block, step: Block | int) -> Rows:
        """Returns the rows that a program takes at a step."""
        ragged = self.rows * self.programs * self.steps != self.spec.rows
        first = (step * self.programs + program) * self.rows
        return Rows(self.spec, first, self.rows, ragged)
