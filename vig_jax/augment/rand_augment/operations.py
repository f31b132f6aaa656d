"""The operations of RandAugment and the distribution that they are drawn from."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

RAND_AUGMENT_OPS = (
    "AutoContrast",
    "Equalize",
    "Invert",
    "Rotate",
    "PosterizeIncreasing",
    "SolarizeIncreasing",
    "SolarizeAdd",
    "ColorIncreasing",
    "ContrastIncreasing",
    "BrightnessIncreasing",
    "SharpnessIncreasing",
    "ShearX",
    "ShearY",
    "TranslateXRel",
    "TranslateYRel",
)
"""timm's names of the operations, which are drawn uniformly and with replacement."""

CODE = {name: code for code, name in enumerate(RAND_AUGMENT_OPS)}
"""The code of each operation in an `Op`."""
IDENTITY = len(RAND_AUGMENT_OPS)
"""The code of an operation that changes nothing."""
APPLY_PROBABILITY = 0.5
"""The probability that the operation of a layer is applied."""

_MAX_MAGNITUDE = 10.0


class Op(NamedTuple):
    """One operation for one image."""

    code: Int[Array, ""]  # index in RAND_AUGMENT_OPS, or IDENTITY
    argument: Float[Array, ""]  # in Pillow's units: degrees, bits, factor, pixels, ...


def draw_op(
    key: PRNGKeyArray, *, magnitude: float, magnitude_std: float, height: int, width: int
) -> Op:
    """Draws one layer's operation for an image of height x width pixels.

    Args:
        key: consumed here.
        magnitude: mean magnitude, 0 to 10.
        magnitude_std: standard deviation of the magnitude, which is then clipped to 0..10.
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        The operation; with probability 1/2 the identity.
    """
    code_key, apply_key, strength_key, sign_key = jax.random.split(key, 4)
    code = jax.random.randint(code_key, (), 0, len(RAND_AUGMENT_OPS))
    strength = magnitude + magnitude_std * jax.random.normal(strength_key)
    level = jnp.clip(strength, 0, _MAX_MAGNITUDE) / _MAX_MAGNITUDE
    signed = jnp.where(jax.random.bernoulli(sign_key), level, -level)
    arguments = {
        "Rotate": 30 * signed,
        "PosterizeIncreasing": 4 - jnp.floor(4 * level),
        "SolarizeIncreasing": 256 - jnp.floor(256 * level),
        "SolarizeAdd": jnp.floor(110 * level),
        "ColorIncreasing": 1 + 0.9 * signed,
        "ContrastIncreasing": 1 + 0.9 * signed,
        "BrightnessIncreasing": 1 + 0.9 * signed,
        "SharpnessIncreasing": 1 + 0.9 * signed,
        "ShearX": 0.3 * signed,
        "ShearY": 0.3 * signed,
        "TranslateXRel": 0.45 * width * signed,
        "TranslateYRel": 0.45 * height * signed,
    }
    argument = jnp.stack([arguments.get(name, jnp.zeros(())) for name in RAND_AUGMENT_OPS])[code]
    applied = jax.random.bernoulli(apply_key, APPLY_PROBABILITY)
    return Op(jnp.where(applied, code, IDENTITY), argument)
