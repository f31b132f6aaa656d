"""Where arrays live: batches are split over the devices, parameters are on every device."""

import os
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

DATA_AXIS = "data"
_FORCE_DEVICES = "xla_force_host_platform_device_count"
_LEAST_ROWS = 16


def use_all_cores(batch_size: int) -> None:
    """Lets a CPU count as several devices, if nobody said how many; accelerators do not care.

    XLA runs most operations of a small model on one core. As devices, all cores work: each on its
    rows of the batch, at least 16 of them. Call this before anything else asks for the devices.

    Args:
        batch_size: global; the number of devices divides it.
    """
    if jax.config.jax_num_cpu_devices != -1 or _FORCE_DEVICES in os.environ.get(  # type: ignore[attr-defined]
        "XLA_FLAGS", ""
    ):
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    most = max(1, min(cores or 1, batch_size // _LEAST_ROWS))
    devices = max(n for n in range(1, most + 1) if batch_size % n == 0)
    jax.config.update("jax_num_cpu_devices", devices)


def make_mesh() -> Mesh:
    """One axis over all devices of all processes."""
    return jax.make_mesh((jax.device_count(),), (DATA_AXIS,), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters: a full copy per device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: the leading axis in equal blocks, one per device."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a global batch that the devices cannot share equally.

    Raises:
        ValueError: `batch_size` is not a positive multiple of the number of devices.
    """
    if batch_size < 1 or batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        near = f"{below} or {below + mesh.size}" if below else f"{mesh.size}"
        raise ValueError(
            f"a batch of {batch_size} cannot be split over {mesh.size} devices: "
            f"set config.train.batch_size to a multiple of {mesh.size}, for example {near}"
        )


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns this process's rows of a batch into global arrays, split over the devices.

    Args:
        batch: arrays whose leading axis is this process's share of the global batch.
        mesh: from `make_mesh`.

    Returns:
        The same names, as arrays of the global batch.
    """
    sharding = batch_sharded(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
