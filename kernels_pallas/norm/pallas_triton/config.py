"""Tiling of the kernels: plain data, and a heuristic for every call."""

import dataclasses

from kernels_pallas.norm.spec import NormSpec


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How one kernel is launched.

    Attributes:
        rows: Rows at a time, a power of two.
        columns: Channels are worked on in parts of this many, a power of two.
        num_warps: Warps per program.
        max_programs: So many programs share all rows, each taking `rows` of them again and again;
            None for as many as there are to take.
    """

    rows: int
    columns: int
    num_warps: int
    max_programs: int | None = None

    def parts(self, spec: NormSpec) -> int:
        """Parts of the channels; the last may be ragged."""
        return -(-spec.width // self.columns)

    def programs(self, spec: NormSpec) -> int:
        """Programs that have something to do if all take as many steps."""
        return -(-self._blocks(spec) // self.steps(spec))

    def steps(self, spec: NormSpec) -> int:
        """How often each program takes rows."""
        return -(-self._blocks(spec) // (self.max_programs or self._blocks(spec)))

    def _blocks(self, spec: NormSpec) -> int:
        return -(-spec.rows // self.rows)


@dataclasses.dataclass(frozen=True)
class Config:
    """Tiling of one call: forward, and backward."""

    forward: Tiling
    backward: Tiling


def heuristic(spec: NormSpec) -> Config:
    """The tiling for a call; a pure function of its static facts."""
    vector = 16 // spec.dtype.itemsize  # channels in the widest access of a thread
    padded = max(vector, 1 << (spec.width - 1).bit_length())
    # Three quarters of a power of two, as most widths of ViG: three parts of a quarter, in which
    # no lane idles. And a part is no wider than what a warp reads at once: then a row belongs to
    # one warp, and its sums need no shared memory.
    columns = padded
    if 4 * spec.width <= 3 * padded and padded >= 4 * vector:
        columns = padded // 4
    columns = min(columns, 32 * vector)
    num_warps = 4
    if spec.width > 1024:  # a thread of the row's only warp would hold too much
        num_warps = min(16, max(num_warps, padded // (64 * vector)))
        columns = min(padded, num_warps * 32 * vector)
    # Rows that the warps hold side by side, a vector per thread and part.
    rows = max(1, num_warps * 32 * vector // columns)
    per_thread = -(-spec.width // columns) * vector
    # Backward scale, bias and sums for their gradients take registers too. With half a vector per
    # thread and part, 128 suffice for the most, and 16 warps run at once.
    halve = per_thread > 16 and rows > 1
    return Config(
        forward=Tiling(rows, columns, num_warps),
        # Four programs on each of an H200's 132 multiprocessors: sums of gradients stay in
        # registers over all their rows, and few partial sums are left to add.
        backward=Tiling(rows // 2 if halve else rows, columns, num_warps, 528),
    )
