"""Configurations of the kernel."""

import dataclasses
from collections.abc import Iterator

from ...core import mosaic
from ...core.device import Device
from ..spec import GlaSpec

CHUNK = 64
"""Tokens per chunk: the rows of the smallest product of a warpgroup."""

VALUES = 64
"""Values per warpgroup that holds a state: the state is transposed, and so its rows are values."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Configuration of the kernel.

    Attributes:
        stages: Chunks of q, k and v that shared memory holds.
        decay_stages: Chunks of log-decays that it holds.
        scanning: Warpgroups that hold the state, for 64 values each. A program has no other values.
    """

    stages: int = 2
    decay_stages: int = 1
    scanning: int = 1

    def shared_bytes(self, spec: GlaSpec) -> int:
        """Returns the shared memory that a program takes, without barriers."""
        keys, values = spec.key_width, VALUES * self.scanning
        operands = self.stages * CHUNK * (4 * keys + 2 * values + 2 * CHUNK)
        decays = CHUNK * keys * (self.decay_stages * spec.decay_dtype.itemsize + 2)
        vectors = 8 * self.stages * keys
        return operands + decays + vectors + 2 * CHUNK * CHUNK + 2 * values * (keys + CHUNK)

    def unsuitable(self, spec: GlaSpec) -> str | None:
        """Returns the reason for which a call cannot use the config, or None."""
        if spec.value_width % (VALUES * self.scanning):
            return f"{self.scanning} warpgroups need a multiple of {VALUES * self.scanning} values"
        size = self.shared_bytes(spec)
        if size > mosaic.SHARED_BYTES:
            return f"it needs {size} bytes of shared memory, more than {mosaic.SHARED_BYTES}"
        return None


def programs(spec: GlaSpec, config: Config) -> int:
    """Returns the number of programs of a call."""
    return spec.batch * spec.heads * (spec.value_width // (VALUES * config.scanning))


def heuristic(spec: GlaSpec, device: Device | None = None) -> Config:
    """Returns the config for a call that was not measured.

    A multiprocessor has room for one program. Where there are more programs than multiprocessors,
    two warpgroups that share the prepared chunks are faster than two programs one after the other.
    """
    multiprocessors = mosaic.MULTIPROCESSORS if device is None else device.multiprocessors
    if programs(spec, Config()) > multiprocessors and spec.value_width % (2 * VALUES) == 0:
        return Config(scanning=2)
    return Config()


def candidates(spec: GlaSpec, device: Device | None = None) -> Iterator[Config]:
    """Returns the configs that autotuning tries."""
    for stages in (2, 3, 4):
        for decay_stages in (1, 2):
            for scanning in (1, 2):
                config = Config(stages, decay_stages, scanning)
                if config.unsuitable(spec) is None:
                    yield config
