"""Tiling of the kernels: plain data, and a heuristic that finds it for a call."""

import dataclasses

from kernels_pallas.depthwise_conv.spec import DepthwiseConvSpec


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How one kernel is launched.

    A program works on a tile of columns by channels and walks down the rows of a band. Columns are
    those of all images side by side, B * w of them.

    Attributes:
        channels: Of a tile; a power of two.
        vector: Neighbouring channels that a thread holds; a power of two.
        num_warps: Warps per program.
        rows: Of a band.
        ahead: Rows that are loaded before they are needed.
        strips: Programs that share all columns, tile after tile, and add up their gradients of the
            weights; 0: one for each tile. Of no meaning to other kernels.
    """

    channels: int
    vector: int
    num_warps: int
    rows: int
    ahead: int
    strips: int = 0

    @property
    def columns(self) -> int:
        """Of a tile."""
        return max(1, 32 * self.num_warps * self.vector // self.channels)

    def channel_blocks(self, spec: DepthwiseConvSpec) -> int:
        return -(-spec.channels // self.channels)

    def bands(self, spec: DepthwiseConvSpec) -> int:
        return -(-spec.height // self.rows)

    def tiles(self, spec: DepthwiseConvSpec) -> int:
        """Tiles side by side."""
        return -(-spec.batch * spec.width // self.columns)

    def programs(self, spec: DepthwiseConvSpec) -> int:
        strips = self.strips or self.tiles(spec)
        return strips * self.bands(spec) * self.channel_blocks(spec)


@dataclasses.dataclass(frozen=True)
class Config:
    """Tiling of one call.

    Attributes:
        forward: Of the convolution, and of the gradient through its activation.
        backward: Of the gradients of pixels and weights.
    """

    forward: Tiling
    backward: Tiling


_MOST_ROWS = 16  # of a band: they are unrolled, and longer code is only slower to compile
# About what 132 multiprocessors hold at a time.
_WARPS = 2560
_PROGRAMS = 640


def heuristic(spec: DepthwiseConvSpec) -> Config:
    """The tiling for a call; a pure function of its static facts."""
    # 128 bytes of a pixel where they fit, else the widest block that pads channels least.
    channels = min((64, 32, 16), key=lambda block: (-(-spec.channels // block) * block, -block))
    rows = -(-spec.height // -(-spec.height // _MOST_ROWS))
    # Nine weights for each of a thread's channels are in registers, backward their sums as well.
    # Wider vectors leave room for fewer threads, and so for fewer loads on their way; as many rows
    # ahead are what the registers left by 24 warps (backward 20) per multiprocessor hold.
    forward = _enough(spec, Tiling(channels, vector=4, num_warps=4, rows=rows, ahead=4))
    backward = _enough(spec, Tiling(channels, vector=2, num_warps=4, rows=rows, ahead=4))
    # No more programs than run at a time: each adds up its weights' gradients once, at its end.
    per_strip = backward.bands(spec) * backward.channel_blocks(spec) * backward.num_warps
    strips = min(backward.tiles(spec), max(1, _WARPS // per_strip))
    return Config(forward, dataclasses.replace(backward, strips=strips))


def _enough(spec: DepthwiseConvSpec, tiling: Tiling) -> Tiling:
    """With smaller programs, as long as there are too few of them."""
    while tiling.programs(spec) < _PROGRAMS and tiling.num_warps > 1:
        tiling = dataclasses.replace(tiling, num_warps=tiling.num_warps // 2)
    while tiling.programs(spec) < _PROGRAMS and tiling.rows > 2:
        tiling = dataclasses.replace(tiling, rows=-(-tiling.rows // 2))
    return tiling
