"""Functions of one image on a batch that is split over devices."""

from collections.abc import Callable
from typing import Any

import jax

from vig_jax.sharding.kernels import ROWS, shard_kernel


def per_image(function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a function of batches that applies `function` to each image.

    Each device serves its own images. XLA would gather what it sorts or takes the largest values
    of, such as the logits of all anchors, on every device instead.

    Args:
        function: takes and returns pytrees of arrays of one image.

    Returns:
        A function of pytrees whose arrays have a leading batch axis; so do its results. See
        `shard_kernel` for the mesh.
    """

    def batched(*trees: Any) -> Any:
        leaves, structure = jax.tree.flatten(trees)

        def rows(*leaves: jax.Array) -> Any:
            return jax.vmap(lambda *x: function(*jax.tree.unflatten(structure, x)))(*leaves)

        return shard_kernel(rows, [ROWS] * len(leaves), ROWS)(*leaves)

    return batched
