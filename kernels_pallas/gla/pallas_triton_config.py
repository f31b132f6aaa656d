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
    """Tiling of one call: its forward and its backward pass."""

    forward: Launch = Launch()
    backward: Launch = Launch()


def heuristic(spec: GlaSpec) -> Config:
    """The tiling for a call that no measured winner is stored for."""
    return Config(
        forward=Launch(chunk=32, num_warps=4, num_stages=3),
        backward=Launch(chunk=64, num_warps=4, num_stages=3, apart=True),
    )
