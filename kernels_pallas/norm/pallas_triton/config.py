"""Configurations of the kernels."""

import dataclasses
from collections.abc import Iterator

from ...core.device import Device
from ...core.integers import cdiv, next_power_of_two
from ..spec import NormSpec


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """Configuration of one kernel.

    Attributes:
        rows: Rows of a block, a power of two.
        columns: Channels of a part of a row, a power of two.
        num_warps: Warps per program.
        max_programs: Upper bound on the grid: each program loops over several blocks of rows. None
            for one block per program.
    """

    rows: int
    columns: int
    num_warps: int
    max_programs: int | None = None

    def parts(self, spec: NormSpec) -> int:
        """Returns the parts of a row; the last may be ragged."""
        return cdiv(spec.width, self.columns)

    def programs(self, spec: NormSpec) -> int:
        """Returns the programs that have a block in every step but the last."""
        return cdiv(self._blocks(spec), self.steps(spec))

    def steps(self, spec: NormSpec) -> int:
        """Returns the blocks that each program loops over."""
        return cdiv(self._blocks(spec), self.max_programs or self._blocks(spec))

    def _blocks(self, spec: NormSpec) -> int:
        return cdiv(spec.rows, self.rows)


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of one call: the forward kernel, and the backward kernel."""

    forward: KernelConfig
    backward: KernelConfig


def heuristic(spec: NormSpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured."""
    vector = 16 // spec.dtype.itemsize  # channels in the widest access of a thread
    padded = max(vector, next_power_of_two(spec.width))
    # Most widths of ViG are three quarters of a power of two: three parts of a quarter each, in
    # which no lane idles. A part is no wider than what a warp reads at once. So a row belongs to
    # one warp, and its sums need no shared memory.
    columns = padded
    if 4 * spec.width <= 3 * padded and padded >= 4 * vector:
        columns = padded // 4
    columns = min(columns, 32 * vector)
    num_warps = 4
    if spec.width > 1024:  # a thread of the row's only warp would hold too much
        num_warps = min(16, max(num_warps, padded // (64 * vector)))
        columns = min(padded, num_warps * 32 * vector)
    # The rows that the warps hold side by side, with a vector per thread and part.
    rows = max(1, num_warps * 32 * vector // columns)
    per_thread = cdiv(spec.width, columns) * vector
    # In the backward kernel scale, bias and the sums of their gradients take registers too. With
    # half a vector per thread and part, 128 registers suffice for most widths, and 16 warps run at
    # a time.
    halve = per_thread > 16 and rows > 1
    return Config(
        forward=KernelConfig(rows, columns, num_warps),
        # Four programs on each of an H200's 132 multiprocessors. The sums of gradients stay in
        # registers over all rows of a program, and only a few partial sums are left to add.
        backward=KernelConfig(rows // 2 if halve else rows, columns, num_warps, 528),
    )


def candidates(spec: NormSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    usual = heuristic(spec, device)
    for scale in (1, 2, 4):
        for num_warps in (2, 4, 8):
            for programs in (264, 528, 1056):
                forward = dataclasses.replace(
                    usual.forward, rows=usual.forward.rows * scale, num_warps=num_warps
                )
                rows = max(1, usual.backward.rows * scale // 2)
                yield Config(
                    forward,
                    dataclasses.replace(
                        usual.backward, rows=rows, num_warps=num_warps, max_programs=programs
                    ),
                )
