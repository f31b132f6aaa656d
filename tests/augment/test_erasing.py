import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.augment.erasing import erase, erase_box

KEY = jax.random.key(0)


def test_distribution_of_the_erased_boxes():
    box = jax.jit(jax.vmap(lambda key: erase_box(key, 224, 224)))
    top, bottom, left, right = map(np.asarray, box(jax.random.split(KEY, 20_000)))
    height, width = bottom - top, right - left
    area = height * width / 224**2
    assert np.all((top >= 0) & (bottom <= 224) & (left >= 0) & (right <= 224))
    assert area.max() < 0.34
    assert area[area > 0].min() > 0.019
    assert np.mean(area[area > 0]) == pytest.approx(0.176, abs=0.002)
    aspect = np.log(height[area > 0] / width[area > 0])
    assert np.abs(aspect).max() < math.log(1 / 0.3) + 0.05
    assert np.mean(aspect) == pytest.approx(0, abs=0.02)
    # Corners are uniform in what the box leaves free.
    assert np.mean((top + 0.5) / (224 - height + 1)) == pytest.approx(0.5, abs=0.01)


def test_erased_pixels_are_normal():
    images = jnp.full((400, 24, 24, 3), 9.0)
    out = np.asarray(jax.jit(functools.partial(erase, probability=0.25))(KEY, images))
    changed = np.any(out != 9, axis=(1, 2, 3))
    assert np.mean(changed) == pytest.approx(0.25, abs=0.07)
    noise = out[out != 9]
    assert np.mean(noise) == pytest.approx(0, abs=0.02)
    assert np.std(noise) == pytest.approx(1, abs=0.02)
    assert np.unique(noise).size > 0.99 * noise.size  # each pixel and channel has its own
    none = jax.jit(functools.partial(erase, probability=0.0))(KEY, images[:2])
    np.testing.assert_array_equal(none, images[:2])
