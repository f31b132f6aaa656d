"""Small copies of images and label maps, at most 256 pixels a side, for figures."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8
from PIL import Image

from vig_jax.data.preprocess.masks import IGNORED

SIDE = 256


def thumbnail_on_device(
    labels: UInt8[Array, "H W"], size: Int[Array, "2"]
) -> UInt8[Array, "256 256"]:
    """Returns a small copy of a label map at the top left of a square; 255 fills the square.

    Args:
        labels: the map at the top left, of any padding.
        size: height and width of the map.
    """
    longest = jnp.maximum(jnp.max(size), SIDE)
    places = (2 * jnp.arange(SIDE) + 1) * longest // (2 * SIDE)
    inside = (places < size[0])[:, None] & (places < size[1])
    rows = jnp.minimum(places, labels.shape[0] - 1)
    columns = jnp.minimum(places, labels.shape[1] - 1)
    return jnp.where(inside, labels[rows][:, columns], jnp.uint8(IGNORED))


def thumbnail_of_labels(labels: UInt8[np.ndarray, "H W"]) -> UInt8[np.ndarray, "h w"]:
    """Returns the same copy without the square around it."""
    longest = max(*labels.shape, SIDE)
    places = (2 * np.arange(SIDE) + 1) * longest // (2 * SIDE)
    rows, columns = (places[places < side] for side in labels.shape)
    return labels[rows][:, columns]


def thumbnail_of_image(
    image: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns an image of the size of the thumbnail of its label map.

    Args:
        image: at any scale.
        size: height and width of the label map.
    """
    shape = thumbnail_of_labels(np.zeros(size, np.uint8)).shape
    return np.asarray(Image.fromarray(image).resize(shape[::-1], Image.Resampling.BOX))
