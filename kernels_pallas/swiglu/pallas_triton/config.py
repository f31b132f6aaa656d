"""Configurations of the kernels."""

import dataclasses
from collections.abc import Iterator

from ...core.device import Device
from ..spec import SwigluSpec


@dataclasses.dataclass(frozen=True)
class KernelConfig:
    """Configuration of one kernel.

    Attributes:
        block: Outputs per program, a power of two. 8 per thread are one 16-byte access to each
            bfloat16 array; with 32 registers a thread, that leaves an SM full of threads.
        num_warps: Warps per program.
    """

    block: int = 1024
    num_warps: int = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of one call: the forward kernel, and the backward kernel."""

    forward: KernelConfig = KernelConfig()
    backward: KernelConfig = KernelConfig()


def heuristic(spec: SwigluSpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured: the same one for all calls."""
    return Config()


def candidates(spec: SwigluSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    for block in (512, 1024, 2048):
        for num_warps in (2, 4, 8):
            kernel = KernelConfig(block, num_warps)
            yield Config(kernel, kernel)
