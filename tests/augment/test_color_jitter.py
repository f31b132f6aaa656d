import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.data.photographs import photo
from vig_jax.augment.color_jitter import color_jitter


def test_color_jitter():
    images = jnp.asarray(np.stack([photo(24, 31, seed) for seed in range(4)]))
    key = jax.random.key(0)
    out = jax.jit(functools.partial(color_jitter, strength=0.4))(key, images)
    assert out.dtype == jnp.uint8
    assert np.all(np.any(np.asarray(out != images), axis=(1, 2, 3)))
    same = jax.jit(functools.partial(color_jitter, strength=0.0))(key, images)
    np.testing.assert_array_equal(same, images)
