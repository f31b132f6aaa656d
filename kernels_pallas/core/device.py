"""What the local devices are."""

import functools
import re

import jax


@functools.cache
def least_cuda_capability() -> float | None:
    """The least compute capability among the local CUDA GPUs, or None if there are none."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return None
    return min(float(device.compute_capability) for device in devices)


@functools.cache
def cuda_device_name() -> str | None:
    """Name of the first local CUDA GPU as files are named by it, or None if there is none."""
    try:
        device = jax.local_devices(backend="cuda")[0]
    except RuntimeError:
        return None
    return re.sub(r"[^a-z0-9]+", "_", device.device_kind.lower()).strip("_")
