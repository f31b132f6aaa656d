"""Describes the local GPUs."""

import dataclasses
import functools
import re

import jax


@dataclasses.dataclass(frozen=True)
class Device:
    """A kind of accelerator that programs are compiled for.

    Attributes:
        platform: The platform as it is named when lowering, such as "cuda".
        name: The model, in the form that folders are named by, such as "nvidia_h200".
        compute_capability: The CUDA compute capability.
        multiprocessors: The number of multiprocessors.
    """

    platform: str
    name: str
    compute_capability: float
    multiprocessors: int = 132


@functools.cache
def local_gpu() -> Device | None:
    """Returns the local CUDA GPU of the lowest compute capability, or None if there is no GPU."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return None
    lowest = min(devices, key=lambda device: float(device.compute_capability))
    name = re.sub(r"[^a-z0-9]+", "_", lowest.device_kind.lower()).strip("_")
    count = getattr(lowest, "core_count", Device.multiprocessors)
    return Device("cuda", name, float(lowest.compute_capability), count)
