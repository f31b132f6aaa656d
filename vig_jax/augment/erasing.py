"""Random erasing on the device."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from vig_jax.augment.keys import row_keys
from vig_jax.layers.packing import Packing

_ERASE_AREA = (0.02, 1 / 3)  # fraction of the image
_ERASE_ASPECT = (0.3, 1 / 0.3)  # height / width
_ERASE_ATTEMPTS = 10


def erase(
    key: PRNGKeyArray, images: Float[Array, "B H W C"], *, probability: float
) -> Float[Array, "B H W C"]:
    """Fills a random rectangle with standard normal noise, a number per pixel and channel.

    The area is uniform in 0.02..1/3 of the image, the aspect log-uniform in 0.3..1/0.3. The first
    of ten attempts that is smaller than the image on both sides is used; if there is none, the
    image stays. Row i draws from `fold_in(key, i)`.

    Args:
        key: consumed here.
        images: normalised.
        probability: of erasing, per image.

    Source: "Random Erasing Data Augmentation", AAAI 2020; timm 0.4.12 `RandomErasing` ("pixel").
    """
    _, H, W, C = images.shape
    # Pixels of the largest rectangle, its sides rounded: no more noise is needed.
    most = min(H * W, math.ceil(_ERASE_AREA[1] * H * W + (H + W) / 2 + 1))

    def one(key, image):
        draw_key, box_key, noise_key = jax.random.split(key, 3)
        top, bottom, left, right = erase_box(box_key, H, W)
        y, x = jnp.arange(H)[:, None], jnp.arange(W)
        inside = (y >= top) & (y < bottom) & (x >= left) & (x < right)
        inside &= jax.random.bernoulli(draw_key, probability)
        noise = jax.random.normal(noise_key, (most, C), image.dtype)
        number = jnp.clip((y - top) * (right - left) + x - left, 0, most - 1)
        return jnp.where(inside[..., None], noise[number], image)

    return jax.vmap(one)(row_keys(key, images.shape[0]), images)


def erase_packed(
    key: PRNGKeyArray,
    patches: Float[Array, "R T P P C"],
    sizes: Int[Array, "R N 2"],
    *,
    probability: float,
) -> Float[Array, "R T P P C"]:
    """Erases in images that are packed in rows of tokens, as `erase` does in a batch.

    The rectangle of image n of row r is that of image r * N + n of a batch; the noise differs.

    Args:
        key: consumed here.
        patches: normalised.
        sizes: rows and columns of each image in patches; see `vig_jax.models.vig.ViG.packed`.
        probability: of erasing, per image.
    """
    (rows, images, _), side = sizes.shape, patches.shape[2]
    packing = Packing.from_sizes(sizes, patches.shape[1])

    def one(key, size):
        draw_key, box_key, _ = jax.random.split(key, 3)
        box = jnp.stack(erase_box(box_key, *(side * size)))
        return jnp.where(jax.random.bernoulli(draw_key, probability), box, 0)

    boxes = jax.vmap(one)(row_keys(key, rows * images), sizes.reshape(-1, 2))
    ends = jnp.moveaxis(boxes.reshape(rows, images, 4), 2, 0)
    top, bottom, left, right = (packing.at_tokens(end)[..., None] for end in ends)
    pixel = jnp.arange(side, dtype=jnp.int32)
    y, x = (side * place[..., None] + pixel for place in (packing.row, packing.column))
    inside = ((y >= top) & (y < bottom))[..., None] & ((x >= left) & (x < right))[..., None, :]
    noise_key = jax.random.fold_in(key, rows * images)  # the others are those of images
    noise = jax.random.normal(noise_key, patches.shape, patches.dtype)
    return jnp.where(inside[..., None], noise, patches)


def erase_box(
    key: PRNGKeyArray, height: int | Int[Array, ""], width: int | Int[Array, ""]
) -> tuple[Array, Array, Array, Array]:
    """Draws top, bottom, left and right of a rectangle; ends excluded, empty if none fits."""
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    shape = (_ERASE_ATTEMPTS,)
    low, high = _ERASE_AREA
    area = jax.random.uniform(area_key, shape, minval=low, maxval=high)
    for side in (height, width):
        area *= side if isinstance(side, int) else side.astype(area.dtype)
    low, high = (math.log(aspect) for aspect in _ERASE_ASPECT)
    aspect = jnp.exp(jax.random.uniform(aspect_key, shape, minval=low, maxval=high))
    h = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    w = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (h < height) & (w < width)
    first = jnp.argmax(fits)
    h, w = (jnp.where(fits[first], side[first], 0) for side in (h, w))
    free = jnp.array([height + 1, width + 1]) - jnp.array([h, w])
    top, left = jax.random.randint(place_key, (2,), 0, free)
    return top, top + h, left, left + w
