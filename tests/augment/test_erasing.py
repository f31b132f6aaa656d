import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.augment.erasing import erase, erase_box, erase_packed
from vig_jax.data.preprocess.native import split_patches

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


def test_packed_images_are_erased_as_a_batch():
    """Checks that the rectangles are the same, and that tokens without an image do not change."""
    probability = 0.6
    images = jnp.full((6, 24, 16, 3), 9.0)
    batch = jax.jit(functools.partial(erase, probability=probability))(KEY, images)
    sizes = jnp.array([[[3, 2]] * 3] * 2)
    patches = jnp.full((2, 20, 8, 8, 3), 9.0)
    run = jax.jit(functools.partial(erase_packed, probability=probability))
    packed = np.asarray(run(KEY, patches, sizes))
    expected = np.stack([split_patches(image, 8) for image in np.asarray(batch)])
    found = packed[:, :18].reshape(6, 6, 8, 8, 3)
    np.testing.assert_array_equal(found != 9, expected != 9)
    assert 0 < np.mean(found != 9) < 0.3
    assert (packed[:, 18:] == 9).all()
    noise = found[found != 9]
    assert np.unique(noise).size == noise.size
    assert np.std(noise) == pytest.approx(1, abs=0.1)
    mixed = jnp.array([[[1, 1], [4, 4], [0, 0]], [[2, 5], [1, 3], [3, 1]]])
    always = jax.jit(functools.partial(erase_packed, probability=1.0))
    erased = np.asarray(always(KEY, patches, mixed)) != 9
    assert not erased[0, 17:].any()
    assert erased[0, 1:17].any()
    assert not erased[1, 16:].any()
