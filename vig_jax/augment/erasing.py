"""Random erasing on the device."""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from vig_jax.augment.keys import row_keys

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


def erase_box(key: PRNGKeyArray, height: int, width: int) -> tuple[Array, Array, Array, Array]:
    """Draws top, bottom, left and right of a rectangle; ends excluded, empty if none fits."""
    area_key, aspect_key, place_key = jax.random.split(key, 3)
    shape = (_ERASE_ATTEMPTS,)
    low, high = _ERASE_AREA
    area = jax.random.uniform(area_key, shape, minval=low, maxval=high) * height * width
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
