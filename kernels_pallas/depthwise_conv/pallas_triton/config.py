"""Configurations of the kernels."""

import dataclasses
from collections.abc import Iterator

from ...core.device import Device
from ...core.integers import cdiv
from ..spec import DepthwiseConvSpec


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """Configuration of one kernel.

    A program works on a tile of columns by channels and walks down the rows of a band. Columns are
    those of all images side by side, B * w of them.

    Attributes:
        channels: Channels of a tile, a power of two.
        vector: Neighbouring channels that a thread holds, a power of two.
        num_warps: Warps per program.
        rows: Rows of a band.
        ahead: Rows that are prefetched.
        strips: Programs that share all columns; each adds up the gradients of the weights over its
            tiles. 0 is one program for each tile. Only the backward kernel uses it.
    """

    channels: int
    vector: int
    num_warps: int
    rows: int
    ahead: int
    strips: int = 0

    @property
    def columns(self) -> int:
        """Returns the columns of a tile."""
        return max(1, 32 * self.num_warps * self.vector // self.channels)

    def channel_blocks(self, spec: DepthwiseConvSpec) -> int:
        """Returns the tiles along the channels."""
        return cdiv(spec.channels, self.channels)

    def bands(self, spec: DepthwiseConvSpec) -> int:
        """Returns the bands of a map."""
        return cdiv(spec.height, self.rows)

    def tiles(self, spec: DepthwiseConvSpec) -> int:
        """Returns the tiles along the columns."""
        return cdiv(spec.batch * spec.width, self.columns)

    def programs(self, spec: DepthwiseConvSpec) -> int:
        """Returns the programs of the launch."""
        strips = self.strips or self.tiles(spec)
        return strips * self.bands(spec) * self.channel_blocks(spec)


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of one call.

    Attributes:
        forward: Of the convolution, and of the gradient through its activation.
        backward: Of the gradients of pixels and weights.
    """

    forward: KernelConfig
    backward: KernelConfig


_MAX_ROWS = 16  # of a band: they are unrolled, and longer code is only slower to compile
# About what 132 multiprocessors hold at a time.
_WARPS = 2560
_PROGRAMS = 640


def heuristic(spec: DepthwiseConvSpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured."""
    # 128 bytes of a pixel where they fit, else the widest block that pads channels least.
    channels = min((64, 32, 16), key=lambda block: (cdiv(spec.channels, block) * block, -block))
    rows = cdiv(spec.height, cdiv(spec.height, _MAX_ROWS))
    # Nine weights for each of a thread's channels are in registers, backward their sums as well.
    # Wider vectors leave room for fewer threads, and so for fewer loads in flight. The rows that
    # are prefetched fit in the registers that 24 warps (backward 20) per multiprocessor leave.
    forward = _enough(spec, KernelConfig(channels, vector=4, num_warps=4, rows=rows, ahead=4))
    backward = _enough(spec, KernelConfig(channels, vector=2, num_warps=4, rows=rows, ahead=4))
    # Not more programs than run at a time: each one writes its sum of the weights' gradients.
    per_strip = backward.bands(spec) * backward.channel_blocks(spec) * backward.num_warps
    strips = min(backward.tiles(spec), max(1, _WARPS // per_strip))
    return Config(forward, dataclasses.replace(backward, strips=strips))


def _enough(spec: DepthwiseConvSpec, config: KernelConfig) -> KernelConfig:
    """Makes programs smaller as long as there are too few of them."""
    while config.programs(spec) < _PROGRAMS and config.num_warps > 1:
        config = dataclasses.replace(config, num_warps=config.num_warps // 2)
    while config.programs(spec) < _PROGRAMS and config.rows > 2:
        config = dataclasses.replace(config, rows=cdiv(config.rows, 2))
    return config


def candidates(spec: DepthwiseConvSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    usual = heuristic(spec, device)
    for vector in (1, 2, 4):
        for num_warps in (1, 2, 4):
            for rows in sorted({usual.forward.rows, min(spec.height, 2 * usual.forward.rows)}):
                for ahead in (2, 4, 6):
                    kernel = KernelConfig(usual.forward.channels, vector, num_warps, rows, ahead)
                    strips = min(kernel.tiles(spec), max(1, usual.backward.strips))
                    yield Config(kernel, dataclasses.replace(kernel, strips=strips))
