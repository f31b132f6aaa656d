"""Where arrays live: batches are split over the devices, parameters are on every device."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from vig_jax.errors import ConfigError

DATA_AXIS = "data"


def make_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """One axis over the devices, by default all of all processes."""
    count = jax.device_count() if devices is None else len(devices)
    return jax.make_mesh((count,), (DATA_AXIS,), axis_types=(AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of parameters: a full copy per device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """The sharding of batches: the leading axis in equal blocks, one per device."""
    return NamedSharding(mesh, PartitionSpec(DATA_AXIS))


def parts_sharded(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch cut into parts [parts, rows, ...]: the rows of each are split."""
    return NamedSharding(mesh, PartitionSpec(None, DATA_AXIS))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Refuses a global batch that the devices cannot share equally.

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


def placed_ahead(
    batches: Iterable[Mapping[str, np.ndarray]], mesh: Mesh, names: Sequence[str]
) -> Iterator[tuple[Mapping[str, np.ndarray], dict[str, jax.Array]]]:
    """Each batch and the arrays `names` of it on the devices, those of the next on their way.

    A transfer to a GPU begins when the work that was started before it is done. Started one step
    early, it goes on beside that step; else it would keep the device waiting.
    """
    current = None
    for batch in batches:
        upcoming = batch, place_batch({name: batch[name] for name in names}, mesh)
        if current is not None:
            yield current
        current = upcoming
    if current is not None:
        yield current


def steps_ahead() -> int:
    """How many computations the host may start before it waits for the device.

    Each holds a batch in memory. On a CPU there is nothing to gain, and simulated devices that run
    two programs at once can wait for each other forever.
    """
    return 0 if jax.default_backend() == "cpu" else 2
