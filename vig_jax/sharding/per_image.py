"""Functions of images on a batch that is split over devices."""

from collections.abc import Callable
from typing import Any

import jax

from vig_jax.sharding.kernels import ROWS, shard_kernel


def per_device(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns `function` so that each device applies it to its own rows.

    XLA would gather what it sorts, takes the largest values of, or indexes, such as the logits of
    all anchors, on every device instead.

    Args:
        function: takes and returns pytrees of arrays with a leading batch axis.

    Returns:
        A function of such pytrees. See `shard_kernel` for the mesh.
    """

    def split(*trees: Any) -> Any:
        leaves, structure = jax.tree.flatten(trees)

        def rows(*leaves: jax.Array) -> Any:
            return function(*jax.tree.unflatten(structure, leaves))

        return shard_kernel(rows, [ROWS] * len(leaves), ROWS)(*leaves)

    return split


def per_image(function: Callable[..., Any], at_once: int | None = None) -> Callable[..., Any]:
    """Returns a function of batches that applies `function` to each image; see `per_device`.

    Args:
        function: takes and returns pytrees of arrays of one image.
        at_once: images that a device computes at a time, which bounds the memory. None: all of its
            images.
    """

    def batched(*trees: Any) -> Any:
        leaves = jax.tree.leaves(trees)
        if at_once is None or len(leaves[0]) <= at_once:
            return jax.vmap(function)(*trees)
        return jax.lax.map(lambda x: function(*x), trees, batch_size=at_once)

    return per_device(batched)
