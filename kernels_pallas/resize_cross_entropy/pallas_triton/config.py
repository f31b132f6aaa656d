"""Configurations of the kernels."""

import dataclasses
from collections.abc import Iterator

from ...core.device import Device
from ...core.integers import cdiv, next_power_of_two
from ..spec import ResizeCrossEntropySpec

_NUMBERS = 40  # resized logits that a thread holds; 80 spill registers


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """Configuration of one kernel. A program serves some cells of a row of cells.

    Attributes:
        cells: Neighbouring cells of a program.
        pixels: Pixels of a cell that are computed at a time, a power of two.
        part: Classes of a part of a pixel's logits, a power of two; the last part may be ragged.
        num_warps: Warps per program.
    """

    cells: int
    pixels: int
    part: int
    num_warps: int = 1

    def parts(self, spec: ResizeCrossEntropySpec) -> int:
        """Returns the parts of a pixel's logits."""
        return cdiv(spec.classes, self.part)

    def across(self, spec: ResizeCrossEntropySpec) -> int:
        """Returns the programs of a row of cells; the last may have cells outside of the map."""
        return cdiv(spec.columns + 1, self.cells)

    def chunks(self, spec: ResizeCrossEntropySpec) -> int:
        """Returns how often a program computes `pixels` of a cell."""
        return cdiv(spec.factor**2, self.pixels)


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of one call: the kernel without gradient, and the one with it."""

    forward: KernelConfig
    gradient: KernelConfig


def heuristic(spec: ResizeCrossEntropySpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured.

    Lanes share a part, so sums over classes take fewer steps between lanes for narrow parts. The
    sums of the gradient over pixels take none if a part has 32 classes, one for each lane.
    Registers limit the pixels. A program has 128 pixels or more, so that what it does once counts
    little.
    """
    return Config(_kernel(spec, 16), _kernel(spec, 32))


def _kernel(spec: ResizeCrossEntropySpec, part: int) -> KernelConfig:
    num_warps = next_power_of_two(cdiv(spec.classes, 256))  # side by side in a part
    part = min(part * num_warps, next_power_of_two(spec.classes))
    numbers = cdiv(spec.classes, part) * part
    room = max(1, _NUMBERS * 32 * num_warps // numbers)
    largest = next_power_of_two(room + 1) // 2  # power of two <= room
    return KernelConfig(
        cells=min(spec.columns + 1, max(1, 128 // spec.factor**2)),
        pixels=min(16, largest, next_power_of_two(spec.factor**2)),
        part=part,
        num_warps=num_warps,
    )


def candidates(spec: ResizeCrossEntropySpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    usual, most = heuristic(spec, device).gradient, next_power_of_two(spec.classes)
    for part in sorted({min(part * usual.num_warps, most) for part in (16, 32, 64)}):
        for pixels in sorted({max(1, usual.pixels // 2), usual.pixels, 2 * usual.pixels}):
            for cells in sorted({max(1, usual.cells // 4), usual.cells, 4 * usual.cells}):
                for num_warps in (usual.num_warps, 2 * usual.num_warps):
                    kernel = KernelConfig(cells, pixels, part, num_warps)
                    yield Config(kernel, kernel)
