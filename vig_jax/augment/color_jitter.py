"""Colour jitter on the device, with Pillow's pixels."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, UInt8

from vig_jax.augment.keys import row_keys
from vig_jax.augment.rand_augment.operations import CODE, Op
from vig_jax.augment.rand_augment.pixels import recolour, statistics, table
from vig_jax.sharding.kernels import ROWS, shard_kernel

_JITTER_OPS = ("BrightnessIncreasing", "ContrastIncreasing", "ColorIncreasing")


def color_jitter(
    key: PRNGKeyArray, images: UInt8[Array, "B H W 3"], *, strength: float
) -> UInt8[Array, "B H W 3"]:
    """Changes brightness, contrast and saturation by factors from [1 - strength, 1 + strength].

    The three come in random order, without hue: torchvision's ColorJitter, as timm uses it without
    RandAugment. Row i draws from `fold_in(key, i)`.

    Args:
        key: consumed here.
        images: RGB pixels.
        strength: 0 to 1.
    """
    codes = jnp.array([CODE[name] for name in _JITTER_OPS])

    def draw(key):
        order_key, factor_key = jax.random.split(key)
        factors = jax.random.uniform(factor_key, (3,), minval=1 - strength, maxval=1 + strength)
        return Op(jax.random.permutation(order_key, codes), factors)

    def jitter(keys, images):
        ops = jax.vmap(draw)(keys)  # [B, 3]
        for i in range(len(_JITTER_OPS)):
            op = Op(ops.code[:, i], ops.argument[:, i])
            tables = jax.vmap(table)(op, jax.vmap(statistics)(images))
            images = recolour(op, images, tables)
        return images

    return shard_kernel(jitter, (ROWS, ROWS), ROWS)(row_keys(key, images.shape[0]), images)
