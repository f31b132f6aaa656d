"""Effective receptive fields: which pixels the centre of a map depends on, and how much."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vig_jax.explain.maps import apply_maps
from vig_jax.models.backbone import Backbone


def receptive_fields(
    model: Backbone,
    variables: Mapping[str, Any],
    images: Float[Array | np.ndarray, "B H W C"],
    out_indices: Sequence[int] | None = None,
) -> Float[np.ndarray, "M H W"]:
    """Returns the effective receptive field of the centre token of maps.

    It is the gradient of the sum of the token's positive channels with respect to the pixels: the
    absolute value, summed over colours, mean over images. Source: Luo et al., "Understanding the
    Effective Receptive Field in Deep Convolutional Neural Networks" (NeurIPS 2016), as in VMamba's
    `analyze/erf.py`, which takes the positive part of the gradient instead of the absolute value.

    Args:
        model: from `create_model`.
        variables: of the model.
        images: normalised pixels; VMamba uses 50 images.
        out_indices: M blocks or stages, as for `model.features`; None means its default. The maps
            of plain models are those of the residual stream, without the norm of the last one.

    Returns:
        A map for each index, in units of an activation per normalised pixel value.

    Raises:
        ConfigError: an index is out of range, or the images are too small.
    """

    def centre(x: jax.Array) -> jax.Array:
        _, rows, columns, _ = x.shape
        return jnp.sum(jax.nn.relu(x[:, rows // 2, columns // 2]))

    def activation(image: jax.Array, variables: Any, chosen: jax.Array) -> jax.Array:
        maps = apply_maps(model, variables, image, out_indices)
        return jnp.sum(chosen * jnp.stack([centre(x) for x in maps]))

    count = len(model.feature_info) if out_indices is None else len(out_indices)
    gradient = jax.jit(jax.grad(activation))  # one program for all maps
    total = np.zeros((count, *images.shape[1:3]), np.float64)
    for image in images:
        for i, chosen in enumerate(np.eye(count, dtype=np.float32)):
            found = np.asarray(gradient(jnp.asarray(image)[None], variables, chosen)[0])
            total[i] += np.abs(found).sum(axis=-1)
    return (total / len(images)).astype(np.float32)


def contribution_area(field: Float[np.ndarray, "H W"], share: float = 0.5) -> float:
    """Returns the part of the image that the smallest square around its centre covers.

    The square holds at least `share` of the sum of a receptive field; it is cut at the borders of
    the image. Source: Ding et al., "Scaling Up Your Kernels to 31x31" (CVPR 2022), table 10.

    Args:
        field: of `receptive_fields`.
        share: from 0 to 1.

    Returns:
        From 0 to 1; NaN if the field is zero everywhere.
    """
    total = field.sum(dtype=np.float64)
    if not total > 0:
        return float("nan")
    height, width = field.shape
    row, column = height // 2, width // 2
    for reach in range(max(height, width)):
        rows = slice(max(0, row - reach), row + reach + 1)
        square = field[rows, max(0, column - reach) : column + reach + 1]
        if square.sum(dtype=np.float64) >= share * total:
            return square.size / field.size
    return 1.0
