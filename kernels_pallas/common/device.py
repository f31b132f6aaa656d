"""What the local devices are."""

import functools

import jax


@functools.cache
def least_cuda_capability() -> float | None:
    """The least compute capability among the local CUDA GPUs, or None if there are none."""
    try:
        devices = jax.local_devices(backend="cuda")
    except RuntimeError:
        return None
    return min(float(device.compute_capability) for device in devices)
