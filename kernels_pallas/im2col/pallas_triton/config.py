"""Configurations of the kernel."""

import dataclasses
from collections.abc import Iterator

from ...core.device import Device
from ...core.integers import cdiv, next_power_of_two
from ..spec import Im2colSpec

_MAX_COLUMNS = 256  # of a program


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of the kernel. A program serves a block of positions of one image.

    Attributes:
        rows: Rows of positions of a program, a power of two.
        across: Positions of a row of a program, a power of two.
        num_warps: Warps per program.
        columns_first: Each warp loads all columns of a few positions. Otherwise lanes load the same
            column of neighbouring positions, which makes columns constants of the program.
    """

    rows: int
    across: int
    num_warps: int = 4
    columns_first: bool = False

    def blocks(self, spec: Im2colSpec) -> tuple[int, int, int]:
        """Returns the blocks of rows of positions, of positions in a row, and of columns."""
        h, w = spec.positions
        columns = cdiv(spec.columns, block_columns(spec))
        return cdiv(h, self.rows), cdiv(w, self.across), columns


def block_columns(spec: Im2colSpec) -> int:
    """Returns the columns of a program."""
    return min(_MAX_COLUMNS, next_power_of_two(spec.columns))


def heuristic(spec: Im2colSpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured.

    A thread of 128 has about 32 numbers, with as few outside of the map as possible. Neighbours in
    a row of positions read neighbouring memory: a program has 16 of them, or the largest power of
    two that divides the row. The rest of the program's numbers are further rows.
    """
    h, w = spec.positions
    across = min(16, w & -w) if w % 4 == 0 else min(16, next_power_of_two(w))
    rows = max(1, 4096 // (across * block_columns(spec)))
    # Positions further apart than a sector of 32 bytes share nothing that lanes load together.
    columns_first = spec.stride * spec.channels * spec.dtype.itemsize > 32
    return Config(min(rows, next_power_of_two(h)), across, columns_first=columns_first)


def candidates(spec: Im2colSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    usual = heuristic(spec, device)
    for rows in sorted({max(1, usual.rows // 2), usual.rows, 2 * usual.rows}):
        for across in sorted({max(1, usual.across // 2), usual.across, 2 * usual.across}):
            for num_warps in (2, 4, 8):
                for columns_first in (False, True):
                    yield Config(rows, across, num_warps, columns_first)
