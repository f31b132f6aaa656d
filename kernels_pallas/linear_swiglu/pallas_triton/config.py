"""Configurations of the kernel."""

import dataclasses
from collections.abc import Iterator

from ...core.device import Device
from ...core.integers import cdiv
from ..spec import LinearSwigluSpec


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of the kernel; sizes are powers of two.

    Attributes:
        rows: Rows per program.
        columns: Outputs per row; the product has twice this number. 128 x 128 sums are 128
            registers of each of 128 threads. They leave room for a second program per
            multiprocessor, whose products run while the gates of the first one are computed.
        depth: Input features per step of the product.
        num_warps: Warps per program; each group of four takes a share of the rows.
        num_stages: Steps whose operands shared memory holds.
    """

    rows: int = 128
    columns: int = 64
    depth: int = 32
    num_warps: int = 4
    num_stages: int = 4


def heuristic(spec: LinearSwigluSpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured.

    The last two were the fastest at the widths of ViG; deep steps suit long products. With few
    rows, such as the 196 of one image, half as large programs and deep steps were.
    """
    programs = cdiv(spec.rows, Config.rows) * cdiv(spec.width, Config.columns)
    multiprocessors = Device.multiprocessors if device is None else device.multiprocessors
    if spec.dtype.itemsize < 4 and 2 * programs < multiprocessors:
        return Config(rows=64, depth=64)
    if spec.features >= 512 and spec.features % 64 == 0:
        return Config(depth=64, num_stages=3)
    return Config()


def candidates(spec: LinearSwigluSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    for rows, columns, num_warps in (
        (128, 64, 4),
        (128, 64, 8),
        (128, 128, 8),
        (256, 64, 8),
        (64, 64, 4),
    ):
        for depth, num_stages in ((32, 4), (32, 5), (64, 3), (64, 4)):
            yield Config(rows, columns, depth, num_warps, num_stages)
