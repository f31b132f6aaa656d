"""The mesh of devices, and the placement of batches and parameters on it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vig_jax.errors import ConfigError

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with one axis over `devices`, by default over all devices of all processes."""
    count = jax.device_count() if devices is None else len(devices)
    return jax.make_mesh((count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of parameters: a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: the leading axis in equal blocks, one per device."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def parts_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch in parts [parts, rows, ...]: the rows of each are split."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Checks that the devices can share a global batch equally.

    Raises:
        ConfigError: `batch_size` is not a positive multiple of the number of devices.
    """
    if batch_size < 1 or batch_size % mesh.size:
        below = batch_size // mesh.size * mesh.size
        near = f"{below} or {below + mesh.size}" if below else f"{mesh.size}"
        raise ConfigError(
            f"a batch of {batch_size} cannot be split over {mesh.size} devices: "
            f"set config.train.batch_size to a multiple of {mesh.size}, for example {near}"
        )


def smallest_batch() -> int:
    """Returns the smallest number of rows that the ambient mesh can split; 1 without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.shape.get(DATA_AXIS, 1)


def place_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Turns this process's rows of a batch into global arrays, split over the devices.

    Args:
        batch: arrays whose leading axis is this process's share of the global batch.
        mesh: from `make_mesh`.

    Returns:
        Arrays of the global batch, under the same names.
    """
    sharding = batch_sharded(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}


def prefetch_to_device(
    batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, names: Sequence[str]
) -> Iterator[tuple[Mapping[str, np.ndarray], dict[str, jax.Array]]]:
    """Yields each batch and its arrays `names` on the devices, while the next batch transfers.

    A transfer to a GPU begins when the work queued before it is done. Started one step early, it
    runs during that step; otherwise the device would wait for it.
    """
    current = None
    for batch in batches:
        upcoming = batch, place_batch({name: batch[name] for name in names}, mesh)
        if current is not None:
            yield current
        current = upcoming
    if current is not None:
        yield current


def max_in_flight() -> int:
    """Returns the number of computations that the host may queue before it waits for the device.

    Each holds a batch in memory. On a CPU there is nothing to gain, and simulated devices that run
    two programs at once can deadlock.
    """
    return 0 if jax.default_backend() == "cpu" else 2
