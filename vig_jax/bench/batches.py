"""Random batches of training for benchmarks."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt8

from vig_jax.config import RunConfig
from vig_jax.tasks.protocol import BatchSpec

OBJECTS = 8  # in an image of detection
_SHARES = 0.04, 0.6  # least and largest side of an object, relative to that of the image


def size_of(config: RunConfig) -> tuple[int, int]:
    """Returns height and width of the images."""
    return config.data.eval_size or (config.data.image_size, config.data.image_size)


def random_pixels(config: RunConfig, seed: int) -> UInt8[Array, "B H W 3"]:
    """Draws a batch of images."""
    shape = (config.train.batch_size, *size_of(config), 3)
    return jax.random.randint(jax.random.key(seed), shape, 0, 256, jnp.int32).astype(jnp.uint8)


def random_batch(config: RunConfig, spec: BatchSpec, seed: int) -> dict[str, jax.Array]:
    """Draws the arrays of a batch by their names: pixels, sizes, objects, or else labels.

    Args:
        config: has the sizes of images and batch, and the number of classes.
        spec: of the task.
        seed: of all draws.
    """
    count, size = config.train.batch_size, size_of(config)
    made: dict[str, Any] = {"image": random_pixels(config, seed)}
    made["size"] = np.broadcast_to(np.array(size), (count, 2))
    if "boxes" in spec:
        made |= random_objects(count, size, config.model.num_classes or 1, seed)
        made["image_id"] = seed * count + np.arange(count)
    if "masks" in spec:
        made["masks"] = _ellipses(count, spec["masks"].shape[-1])

    def array(name: str, of_one: jax.ShapeDtypeStruct) -> jax.Array:
        if name in made:
            return _padded(made[name], (count, *of_one.shape)).astype(of_one.dtype)
        classes = config.model.num_classes or 1
        labels = jax.random.randint(jax.random.key(seed), (count, *of_one.shape), 0, classes)
        return labels.astype(of_one.dtype)

    return {name: array(name, of_one) for name, of_one in spec.items()}


def random_objects(
    batch_size: int, size: tuple[int, int], classes: int, seed: int
) -> dict[str, np.ndarray]:
    """Draws `OBJECTS` objects for each image, small ones as often as large ones.

    Args:
        batch_size: number of images B.
        size: height and width of the images.
        classes: number of classes.
        seed: of the draws.

    Returns:
        `boxes` float32 [B, OBJECTS, 4] (x1, y1, x2, y2 in pixels), `labels` int32 [B, OBJECTS] from
        0, and `valid`, which is True.
    """
    rng = np.random.default_rng(seed)
    shape = batch_size, OBJECTS
    least, most = _SHARES
    sides = np.exp(rng.uniform(math.log(least), math.log(most), (*shape, 2)))
    corners = rng.uniform(size=(*shape, 2)) * (1 - sides)
    scale = np.array(size[::-1] * 2, np.float32)
    return {
        "boxes": np.concatenate([corners, corners + sides], axis=-1, dtype=np.float32) * scale,
        "labels": rng.integers(classes, size=shape, dtype=np.int32),
        "valid": np.ones(shape, np.bool_),
    }


def ellipse(height: int, width: int) -> np.ndarray:
    """Returns whether the pixels of a box are in its ellipse, bool [height, width]."""
    y, x = ((2 * np.arange(side) + 1) / side - 1 for side in (height, width))
    return np.asarray(y[:, None] ** 2 + x**2 <= 1)


def _ellipses(batch_size: int, side: int) -> np.ndarray:
    """Returns the mask of each object, cut to its box, with 255 in the object."""
    mask = np.uint8(255) * ellipse(side, side)
    return np.broadcast_to(mask, (batch_size, OBJECTS, side, side))


def _padded(array: Any, shape: tuple[int, ...]) -> jax.Array:
    """Returns an array with zeros after it, along all axes that are too short."""
    return jnp.pad(array, [(0, end - start) for start, end in zip(array.shape, shape, strict=True)])
