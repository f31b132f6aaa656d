"""The mesh of devices, and the placement of batches and parameters on it.

A mesh is a grid of devices with named axes. Each example is on the devices of one place of the
axes `data` and `fsdp`, which split the batch. The axis `fsdp` splits the state of a run as well
(`vig_jax.sharding.rules`), and the axis `sequence` splits the rows of each image.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from vig_jax.config import MeshConfig
from vig_jax.errors import ConfigError

DATA_AXIS = "data"
FSDP_AXIS = "fsdp"
SEQUENCE_AXIS = "sequence"
BATCH_AXES = (DATA_AXIS, FSDP_AXIS)
"""The axes that split the batch."""


def make_mesh(devices: Sequence[jax.Device] | None = None, shape: MeshConfig | None = None) -> Mesh:
    """Returns the mesh of a run, with the axis `data`, and `fsdp` and `sequence` where they split.

    The axis `sequence` is the innermost: its devices have consecutive numbers. An axis of one
    device would cost exchanges of one device with itself.

    Args:
        devices: by default all devices of all processes.
        shape: devices per axis; by default all are on the axis `data`.

    Raises:
        ConfigError: the product of the axes is not the number of devices, or the processes
            cannot share the batch equally.
    """
    shape = shape or MeshConfig()
    count = jax.device_count() if devices is None else len(devices)
    data = _data_devices(shape, count)
    processes = jax.process_count() if devices is None else 1
    if data * shape.fsdp % processes:
        raise ConfigError(
            f"{_product(shape, data)} splits the batch in {data * shape.fsdp}, which "
            f"{processes} processes cannot share equally: lower config.mesh.sequence"
        )
    axes = {DATA_AXIS: data, FSDP_AXIS: shape.fsdp, SEQUENCE_AXIS: shape.sequence}
    axes = {name: count for name, count in axes.items() if count > 1 or name == DATA_AXIS}
    return jax.make_mesh(
        tuple(axes.values()), tuple(axes), axis_types=(AxisType.Auto,) * len(axes), devices=devices
    )


def _data_devices(shape: MeshConfig, count: int) -> int:
    """Returns the number of devices of the axis `data`."""
    others = shape.fsdp * shape.sequence
    if count % others:
        raise ConfigError(
            f"config.mesh.fsdp={shape.fsdp} x config.mesh.sequence={shape.sequence} is {others}, "
            f"which does not divide the {count} devices: set both so that their product is one "
            f"of {', '.join(str(n) for n in range(1, count + 1) if count % n == 0)}"
        )
    if shape.data not in (0, count // others):
        raise ConfigError(
            f"{_product(shape, shape.data)} is {shape.data * others}, and there are {count} "
            f"devices: set config.mesh.data={count // others}, or 0 for all that are left"
        )
    return count // others


def _product(shape: MeshConfig, data: int) -> str:
    return f"config.mesh of data={data} x fsdp={shape.fsdp} x sequence={shape.sequence}"


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of batches: equal blocks of the leading axis over `BATCH_AXES`."""
    return NamedSharding(mesh, present(PartitionSpec(BATCH_AXES), mesh))


def images_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of images [B, H, W, 3] whose rows are split over the axis `sequence`."""
    return NamedSharding(mesh, present(PartitionSpec(BATCH_AXES, SEQUENCE_AXIS), mesh))


def parts_sharded(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch in parts [parts, rows, ...]: the rows of each are split."""
    return NamedSharding(mesh, present(PartitionSpec(None, BATCH_AXES), mesh))


def batch_devices(mesh: Mesh | AbstractMesh) -> int:
    """Returns the number of blocks that a mesh splits the batch into."""
    return math.prod(mesh.shape.get(name, 1) for name in BATCH_AXES)


def present(
    spec: PartitionSpec, mesh: Mesh | AbstractMesh, rows: tuple[str, ...] = BATCH_AXES
) -> PartitionSpec:
    """Returns a spec without the axes that a mesh lacks, and with `rows` for the batch's axes."""

    def entry(given: str | tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = axis_names(given)
        if names == BATCH_AXES:
            names = rows
        return tuple(name for name in names if name in mesh.shape) or None

    return PartitionSpec(*map(entry, spec))


def axis_names(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
    """Returns the mesh axes of one entry of a spec."""
    return () if entry is None else (entry,) if isinstance(entry, str) else entry


def automatic_axes(mesh: Mesh | AbstractMesh) -> tuple[str, ...]:
    """Returns the axes that XLA splits arrays over by itself."""
    pairs = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in pairs if kind == AxisType.Auto)


def check_axes(mesh: Mesh) -> None:
    """Checks that a mesh can be that of a run, or of an evaluation.

    Raises:
        ConfigError: an axis is not automatic, or has a name that splits nothing.
    """
    known = (*BATCH_AXES, SEQUENCE_AXIS)
    wrong = [name for name, count in mesh.shape.items() if count > 1 and name not in known]
    if wrong or automatic_axes(mesh) != mesh.axis_names:
        raise ConfigError(
            f"the mesh has the axes {dict(mesh.shape)} of {mesh.axis_types}; a run splits its "
            f"arrays over automatic axes named {', '.join(known)}: make the mesh with "
            "vig_jax.sharding.mesh.make_mesh"
        )


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Checks that the devices can share a global batch equally.

    Raises:
        ConfigError: `batch_size` is not a positive multiple of the batch's devices.
    """
    devices = batch_devices(mesh)
    if batch_size < 1 or batch_size % devices:
        below = batch_size // devices * devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise ConfigError(
            f"a batch of {batch_size} cannot be split over {devices} devices: "
            f"set config.train.batch_size to a multiple of {devices}, for example {near}"
        )


def check_rows(batch_size: int, row_images: int, mesh: Mesh, parts: int = 1) -> None:
    """Checks that the devices can share the rows of a global batch of packed images equally.

    Args:
        batch_size: images of a batch.
        row_images: images of a row.
        mesh: of the run.
        parts: of the batch, computed in sequence.

    Raises:
        ConfigError: `batch_size` is not a multiple of images of a row, parts and devices.
    """
    least = row_images * parts * batch_devices(mesh)
    if batch_size % least:
        raise ConfigError(
            f"a batch of {batch_size} images cannot be split into {parts} parts of rows of "
            f"{row_images} images on {batch_devices(mesh)} devices: set config.train.batch_size to "
            f"a multiple of {least}, or lower config.data.row_images"
        )


def smallest_batch() -> int:
    """Returns the smallest number of rows that the ambient mesh can split; 1 without a mesh."""
    return batch_devices(jax.sharding.get_abstract_mesh())


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
