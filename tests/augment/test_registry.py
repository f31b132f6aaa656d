import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.augment import registry
from vig_jax.augment.registry import apply_augmentations, register_augmentation
from vig_jax.errors import ConfigError

IMAGES = np.arange(2 * 3 * 4 * 3, dtype=np.uint8).reshape(2, 3, 4, 3)


@pytest.fixture(autouse=True)
def _registered(monkeypatch):
    monkeypatch.setattr(registry, "_AUGMENTATIONS", {})
    register_augmentation("double", lambda key, images: images * 2)
    register_augmentation("add", lambda key, images: images + 1)
    register_augmentation("noise", lambda key, images: images + _noise(key, images))
    register_augmentation("float", lambda key, images: images / 2)
    register_augmentation("cut", lambda key, images: images[:, 1:])


def _noise(key, images):
    return jax.random.randint(key, images.shape, 0, 2).astype(jnp.uint8)


def apply(*names):
    return np.asarray(apply_augmentations(jax.random.key(0), jnp.asarray(IMAGES), names))


def test_they_are_applied_in_order():
    np.testing.assert_array_equal(apply(), IMAGES)
    np.testing.assert_array_equal(apply("double", "add"), 2 * IMAGES + 1)
    np.testing.assert_array_equal(apply("add", "double"), 2 * (IMAGES + 1))


def test_each_has_its_draws():
    once, twice = apply("noise") - IMAGES, apply("noise", "noise") - IMAGES
    np.testing.assert_array_equal(once, apply("noise") - IMAGES)
    assert set(np.unique(twice)) == {0, 1, 2}  # with equal draws there would be no 1


@pytest.mark.parametrize("name", ["float", "cut"])
def test_shape_and_dtype_must_stay(name):
    with pytest.raises(ConfigError, match=f"'{name}' returns .*must keep uint8"):
        apply("add", name)


def test_unknown_name():
    with pytest.raises(ConfigError, match="'doubel' is not registered by a plugin; did you mean"):
        apply("doubel")
