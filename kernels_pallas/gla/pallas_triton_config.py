"""Tiling of the kernels: plain data, and the heuristic that picks it from a call's static facts."""

import dataclasses

from kernels_pallas.gla.spec import GlaSpec


@dataclasses.dataclass(frozen=True)
class Launch:
    """How one kernel is launched.

    Attributes:
        chunk: Tokens per chunk, a power of two, at least 16.
        num_warps: Warps per program.
        num_stages: Depth of Triton's software pipeline.
        segments: Parts of the tokens with programs of their own.
        apart: Each direction has programs and an output of its own; else one program walks in both
            directions, one after the other, and adds the second to the first.
        value_block: Most values per program, a power of two.
        exact_num_warps: Warps per program of the pass for strong decays.
    """

    chunk: int = 16
    num_warps: int = 1
    num_stages: int = 3
    segments: int = 1
    apart: bool = False
    value_block: int = 64
    exact_num_warps: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """Tiling of one call.

    Attributes:
        forward: Of the forward pass where nothing is differentiated.
        training: Of the forward pass that keeps the state before each chunk.
        backward: Of the backward pass; it reads those states, so chunk, segments and value_block
            are those of `training`.
    """

    forward: Launch = Launch()
    training: Launch = Launch()
    backward: Launch = Launch()

    def __post_init__(self):
        for name in ("chunk", "segments", "value_block"):
            if getattr(self.training, name) != getattr(self.backward, name):
                raise ValueError(f"training and backward must have the same {name}")


def heuristic(spec: GlaSpec) -> Config:
    """The tiling for a call."""
    keys, values = (
        max(16, 1 << (width - 1).bit_length()) for width in (spec.key_width, spec.value_width)
    )
    values = min(64, values)
    # The state [K, V] lives in registers: 32 numbers of it per thread leave room for a chunk.
    num_warps = min(8, max(1, keys * values // 1024))
    rows = spec.batch * spec.heads
    segments = 1
    while rows * segments < 768 and spec.tokens >= 512 * segments:
        segments *= 2
    forward = Launch(num_warps=num_warps, segments=segments, exact_num_warps=max(4, num_warps))
    return Config(forward, forward, dataclasses.replace(forward, apart=True))
