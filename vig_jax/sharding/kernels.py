"""Hand-written kernels under a mesh: the compiler cannot split them, so they are mapped."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from vig_jax.sharding.mesh import DATA_AXIS


def over_batch(function: Callable[..., Any], *, replicated: int = 0) -> Callable[..., Any]:
    """Makes a function of arrays `[B, ...]` run on each device's own rows.

    XLA splits its own operations over the mesh, but would gather the inputs of a hand-written
    kernel on every device. The mesh is the ambient one (`jax.set_mesh`); without one, on a single
    device, or if the devices cannot share the batch equally, the function is called as it is.

    Args:
        function: positional arrays in, arrays out, rows of the leading axis independent. NumPy's
            arrays, which parameters may be, reach it as JAX's.
        replicated: so many of the last arguments are weights, whole on every device.

    Returns:
        The mapped function.
    """

    @functools.wraps(function)
    def mapped(*given: jax.Array | np.ndarray) -> Any:
        arrays = [jnp.asarray(x) for x in given]
        mesh = jax.sharding.get_abstract_mesh()
        shards = 1 if mesh.empty else mesh.shape.get(DATA_AXIS, 1)
        if shards == 1 or arrays[0].shape[0] % shards:
            return function(*arrays)
        rows = PartitionSpec(DATA_AXIS)
        # check_vma: kernels do not declare over which axes their outputs vary.
        run = jax.shard_map(
            function,
            mesh=mesh,
            in_specs=(rows,) * (len(arrays) - replicated) + (PartitionSpec(),) * replicated,
            out_specs=rows,
            check_vma=False,
        )
        return run(*arrays)

    return mapped
