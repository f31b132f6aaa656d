"""Rules that say how the arrays of a run's state are split over the mesh.

A rule is a pattern of paths and a placement: the habit of big_vision and MaxText. The first rule
whose pattern matches the path of an array decides. Paths are those of a `TrainState`, such as
`params/blocks_0/mlp/gate_proj/kernel` or `opt_state/1/0/mu/pos_embed`.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from vig_jax.sharding.mesh import FSDP_AXIS, present, replicated


@dataclasses.dataclass(frozen=True)
class Largest:
    """Splits the largest axis of an array that divides by the devices of a mesh axis.

    Attributes:
        axis: of the mesh.
        at_least: number of elements below which an array stays whole. A scale or bias takes little
            memory, and exchanging it takes as long as exchanging a larger array.
    """

    axis: str = FSDP_AXIS
    at_least: int = 2**14

    def spec(self, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
        """Returns the spec of an array; it is not split if no axis of it divides."""
        devices = mesh.shape.get(self.axis, 1)
        sizes = [size if size % devices == 0 else 0 for size in shape]
        if devices == 1 or math.prod(shape) < self.at_least or not max(sizes, default=0):
            return PartitionSpec()
        return PartitionSpec(*[None] * sizes.index(max(sizes)), self.axis)


Rules = Sequence[tuple[str, PartitionSpec | Largest]]
"""Regular expressions, matched from the start of a path, and placements."""

REPLICATE: Rules = ((r".*", PartitionSpec()),)
"""Every device has everything."""

FSDP: Rules = (
    (r"(params|ema_params|opt_state)/", Largest()),
    (r".*", PartitionSpec()),  # step, key, batch statistics
)
"""Parameters, EMA and optimizer state are split over the axis `fsdp`, if it has several devices."""


def shardings(tree: Any, mesh: Mesh, rules: Rules = FSDP) -> Any:
    """Returns the sharding of every leaf of a tree.

    Args:
        tree: arrays or shapes: a `TrainState`, or variables, whose paths begin alike.
        mesh: axes that it lacks split nothing.
        rules: the first that matches decides.

    Raises:
        ValueError: no rule matches a path.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        placement = next((p for pattern, p in rules if re.match(pattern, name)), None)
        if placement is None:
            raise ValueError(f'no rule matches {name}: end the rules with (".*", PartitionSpec())')
        if isinstance(placement, Largest):
            placement = placement.spec(tuple(leaf.shape), mesh)
        return NamedSharding(mesh, present(placement, mesh))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def placed(tree: Any, mesh: Mesh, rules: Rules = FSDP) -> Any:
    """Returns a tree of arrays, the same in every process, split over a mesh by the rules.

    Args:
        tree: of arrays of the host or of this process's devices.
        mesh: from `make_mesh`.
        rules: the first that matches decides.
    """
    return jax.tree.map(place, tree, shardings(tree, mesh, rules))


def place(array: Any, sharding: NamedSharding) -> jax.Array:
    """Returns an array, the same in every process, on the devices of a sharding.

    Args:
        array: of the host or of this process's devices.
        sharding: over devices of any processes.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding)
    local = np.asarray(array)
    return jax.make_array_from_callback(local.shape, sharding, lambda index: local[index])


def gathered(params: Any, split: Any) -> Any:
    """Returns parameters whole on every device, inside of a compiled function.

    XLA could also compute with split weights and exchange activations, which are larger. It gathers
    each array by itself, before its first use. The gradient of an array is summed over the devices
    and then split as the array is. Split at once, the layers' own slices of weights would exchange
    parts of gradients.

    Args:
        params: arrays.
        split: their shardings, from `shardings`.
    """

    def gather(x: jax.Array, sharding: NamedSharding) -> jax.Array:
        whole = NamedSharding(sharding.mesh, PartitionSpec())

        @jax.custom_vjp
        def gather(x: jax.Array) -> jax.Array:
            return jax.lax.with_sharding_constraint(x, whole)

        def forward(x: jax.Array) -> tuple[jax.Array, None]:
            return gather(x), None

        def backward(_: None, gradient: jax.Array) -> tuple[jax.Array]:
            total = jax.lax.with_sharding_constraint(gradient, whole)
            return (jax.lax.with_sharding_constraint(total, sharding),)

        gather.defvjp(forward, backward)
        return gather(x)

    return jax.tree.map(gather, params, split)


def with_whole_variables(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Returns a function of variables and a batch that gathers the variables where it uses them.

    Args:
        function: takes variables that are whole on every device.
        mesh: that of the variables, which may be split.
    """

    @functools.wraps(function)  # its name is the program's
    def gathering(variables: Any, batch: Any) -> Any:
        return function(jax.lax.with_sharding_constraint(variables, replicated(mesh)), batch)

    return gathering


def state_is_split() -> bool:
    """Returns whether the rules can split arrays on the ambient mesh."""
    return jax.sharding.get_abstract_mesh().shape.get(FSDP_AXIS, 1) > 1
