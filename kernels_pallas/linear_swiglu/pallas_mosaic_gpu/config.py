"""Configurations of the kernel."""

import dataclasses
from collections.abc import Iterator

from ...core import mosaic
from ...core.device import Device
from ...core.integers import cdiv
from ..spec import LinearSwigluSpec

DEPTH = 64
"""Input features per step of the product: a row of them fills the widest swizzle, 128 bytes."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of the kernel.

    Attributes:
        rows: Rows of a tile, a multiple of 64.
        columns: Outputs per row of a tile; the product has twice this number. 128 x 64 outputs are
            128 registers of each thread of a warpgroup.
        stages: Steps of the product whose operands shared memory holds.
        keep_rows: A program keeps its rows of x in shared memory for all columns. Else they are
            read again for each tile.
    """

    rows: int = 128
    columns: int = 64
    stages: int = 6
    keep_rows: bool = False

    def shared_bytes(self, features: int) -> int:
        """Returns the shared memory that operands and outputs take."""
        rows = self.rows * (cdiv(features, DEPTH) if self.keep_rows else self.stages)
        weights = self.stages * 2 * self.columns
        return 2 * (DEPTH * (rows + weights) + 2 * self.rows * self.columns)

    def unsuitable(self, spec: LinearSwigluSpec) -> str | None:
        """Returns the reason for which a call cannot use the config, or None."""
        size, steps = self.shared_bytes(spec.features), cdiv(spec.features, DEPTH)
        if self.keep_rows and cdiv(spec.width, self.columns) < 2:
            return "keep_rows needs two tiles of columns, one for each warpgroup: use less columns"
        if self.keep_rows and self.stages < steps - 1:
            # A tile starts when all of its rows are there, and the ring is filled beside them.
            return f"keep_rows needs {steps - 1} stages for {spec.features} features"
        if size > mosaic.SHARED_BYTES:
            return f"it needs {size} bytes of shared memory, more than {mosaic.SHARED_BYTES}"
        return None


def heuristic(spec: LinearSwigluSpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured.

    Six stages fill the shared memory. Rows that are kept were slower at D = 384.
    """
    return Config()


def candidates(spec: LinearSwigluSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    for rows, columns in ((128, 64), (64, 128)):
        for keep_rows in (True, False):
            for stages in (3, 4, 5, 6, 8):
                config = Config(rows, columns, stages, keep_rows)
                if config.unsuitable(spec) is None:
                    yield config
