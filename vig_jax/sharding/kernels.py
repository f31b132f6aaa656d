"""Kernels on several devices: XLA cannot split a hand-written kernel, so each device runs its own.

XLA splits its own operations over a mesh. It would gather the inputs of a hand-written kernel on
every device instead.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from kernels_pallas.core.types import Dim
from vig_jax.errors import ConfigError
from vig_jax.sharding.mesh import (
    BATCH_AXES,
    SEQUENCE_AXIS,
    automatic_axes,
    axis_names,
    present,
)

ROWS = PartitionSpec(BATCH_AXES)
"""The leading axis is split over the devices that share the batch."""
MAPS = PartitionSpec(BATCH_AXES, SEQUENCE_AXIS)
"""Likewise, and the devices that share an image split the second axis: the rows of a map, or its
tokens row by row. `vig_jax.sharding.sequence` has what they need from each other."""
WHOLE = PartitionSpec()
"""Every device has the whole array."""

_SUMS = contextvars.ContextVar("dtype of sums over devices", default="float32")


@contextlib.contextmanager
def gradients_summed_in(dtype: str) -> Iterator[None]:
    """Sets the narrowest type in which gradients of whole arrays are summed over devices.

    It holds for kernels that are traced meanwhile. The default is float32. Narrower types send
    fewer bytes, and every addition rounds.
    """
    token = _SUMS.set(dtype)
    try:
        yield
    finally:
        _SUMS.reset(token)


def shard_kernel(
    kernel: Callable[..., Any], in_specs: Sequence[PartitionSpec], out_specs: Any
) -> Callable[..., Any]:
    """Returns a function that runs `kernel` on each device's shards of its arguments.

    The mesh is the ambient one (`jax.set_mesh`). Without a mesh, or if every axis named in the
    specs has one device, the kernel is called directly. Manual axes, as inside of `jax.shard_map`,
    split no further. If the first argument is split over explicit axes of a mesh, as
    `jax.make_mesh` makes them, that mesh is used, and the batch's axes are replaced by the axes
    that split the argument's leading axis.

    The gradient of an argument that is whole, such as a weight, is the sum of those of the devices.
    It is computed in float32 or wider, see `gradients_summed_in`, and rounded once.

    Args:
        kernel: takes arrays, returns arrays; must not depend on what other shards hold, except
            by the functions of `vig_jax.sharding.sequence`.
        in_specs: how each argument is split, by the names of mesh axes. A name that the mesh lacks
            means no split.
        out_specs: the same for the results; a pytree of specs that is a prefix of the results.

    Returns:
        A function of the same arguments. NumPy arrays reach the kernel as JAX arrays.

    Raises:
        ConfigError: when called, if an axis of an argument does not divide by its devices, or
            explicit axes split more of the first argument than batch and rows.
    """

    @functools.wraps(kernel)
    def sharded(*arguments: jax.Array | np.ndarray) -> Any:
        arrays = [jnp.asarray(x) for x in arguments]
        mesh, rows = _mesh_of(arrays[0])
        specs = [present(spec, mesh, rows) for spec in in_specs]
        for number, (array, spec) in enumerate(zip(arrays, specs, strict=True)):
            _check_divides(array.shape, spec, mesh, number)
        if all(_devices(names, mesh) == 1 for spec in specs for names in spec):
            return kernel(*arrays)
        results = jax.tree.map(
            lambda spec: present(spec, mesh, rows),
            out_specs,
            is_leaf=lambda x: isinstance(x, PartitionSpec),
        )
        if mesh.explicit_axes:  # then shard_map does not split what is whole
            arrays = [
                jax.reshard(x, NamedSharding(mesh, spec))
                for x, spec in zip(arrays, specs, strict=True)
            ]
        dtypes = [x.dtype for x in arrays]
        pairs = zip(arrays, in_specs, strict=True)
        wide = [_summed(x) if spec == WHOLE else x for x, spec in pairs]

        def narrowed(*shards: jax.Array) -> Any:
            pairs = zip(shards, dtypes, strict=True)
            return kernel(*(x if x.dtype == dtype else x.astype(dtype) for x, dtype in pairs))

        # check_vma: kernels do not declare over which axes their outputs vary.
        run = jax.shard_map(
            narrowed, mesh=mesh, in_specs=tuple(specs), out_specs=results, check_vma=False
        )
        return run(*wide)

    return sharded


def _summed(x: jax.Array) -> jax.Array:
    """Returns an array in the type in which its gradient is summed; the values are the same."""
    wide = np.dtype(_SUMS.get())
    narrow = jnp.issubdtype(x.dtype, jnp.floating) and x.dtype.itemsize < wide.itemsize
    return x.astype(wide) if narrow else x


def on_every_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of whole arrays that every device of the ambient mesh computes for itself.

    XLA would split the computation as its results are split later. In a loop whose length depends
    on values, such as a draw with rejections, the devices would then wait for each other in each
    turn.
    """

    @functools.wraps(function)
    def computed(*arrays: jax.Array) -> Any:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.size <= 1 or automatic_axes(mesh) != mesh.axis_names:
            return function(*arrays)
        run = jax.shard_map(function, mesh=mesh, in_specs=WHOLE, out_specs=WHOLE, check_vma=False)
        return run(*arrays)

    return computed


def _mesh_of(array: jax.Array) -> tuple[AbstractMesh, tuple[str, ...]]:
    """Returns the mesh to run on, and the names of its axes that split rows."""
    sharding = jax.typeof(array).sharding
    explicit = [name for entry in sharding.spec for name in axis_names(entry)]
    if not explicit:
        mesh = jax.sharding.get_abstract_mesh()
        # Arrays show how explicit axes split them, and inside of `jax.shard_map` axes are manual.
        return mesh, tuple(name for name in BATCH_AXES if name in automatic_axes(mesh))
    rows, *others = sharding.spec
    if any(others) and others != [SEQUENCE_AXIS, *[None] * (len(others) - 1)]:
        raise ConfigError(
            f"an array of shape {list(array.shape)} is split as {sharding.spec}; models can split "
            f"the batch, and rows over the axis {SEQUENCE_AXIS!r}: shard the images with "
            f"PartitionSpec(NAME) or PartitionSpec(NAME, {SEQUENCE_AXIS!r})"
        )
    return sharding.mesh, axis_names(rows)


def _devices(entry: str | tuple[str, ...] | None, mesh: AbstractMesh) -> int:
    """Returns the number of devices that one entry of a spec splits an axis over."""
    count = 1
    for name in axis_names(entry):
        count *= mesh.shape[name]
    return count


def _check_divides(
    shape: tuple[Dim, ...], spec: PartitionSpec, mesh: AbstractMesh, number: int
) -> None:
    for axis, entry in enumerate(spec):
        devices = _devices(entry, mesh)
        if shape[axis] % devices:
            near = max(1, round(shape[axis] / devices)) * devices
            raise ConfigError(
                f"argument {number} of a kernel has shape {list(shape)}; the {devices} devices of "
                f"mesh axis {' x '.join(axis_names(entry))!r} need a multiple of {devices} along "
                f"axis {axis}: use for example {near}, or call it without a mesh"
            )
