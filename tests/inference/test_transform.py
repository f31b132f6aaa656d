"""`data_config` and `create_transform`: the pixels of evaluation for single images."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

import vig_jax
from tests.data.loading import eval_image
from vig_jax.layers.pixels import normalise
from vig_jax.weights.published import published_config


@pytest.fixture(scope="module")
def photo():
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((70, 50), Image.Resampling.BICUBIC)


def test_pixels_are_those_of_evaluation(photo):
    data = vig_jax.data_config("vig_s", 32)
    assert (data.eval_size, data.crop_pct) == ((32, 32), 0.875)
    pixels = vig_jax.create_transform(data, normalised=False)(photo)
    np.testing.assert_array_equal(pixels, eval_image(photo, data), strict=True)
    floats = vig_jax.create_transform(data)(photo)
    expected = normalise(jnp.asarray(pixels)[None], data.mean, data.std)[0]
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, expected, rtol=1e-5, atol=1e-6)


def test_every_form_of_an_image(photo):
    transform = vig_jax.create_transform(vig_jax.data_config("vig_h_t", (32, 48)))
    expected = transform(photo)
    assert expected.shape == (32, 48, 3)
    file = io.BytesIO()
    photo.save(file, "PNG")
    for image in (np.asarray(photo), file.getvalue(), photo.convert("RGBA")):
        np.testing.assert_array_equal(transform(image), expected)
    gray = transform(photo.convert("L"))
    assert gray.shape == (32, 48, 3)
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\]"):
        transform(np.zeros((8, 8, 3), np.float32))


def test_the_config_of_a_module():
    sizes = {"embed_dim": 32, "depth": 1, "num_heads": 1}
    assert vig_jax.data_config("vig_t") == published_config("vig_t").data
    assert vig_jax.data_config(vig_jax.create_model("vig_t", **sizes)) == (
        published_config("vig_t").data
    )
    large = vig_jax.create_model("vig_t", img_size=384, **sizes)
    assert vig_jax.data_config(large).image_size == 384
    assert vig_jax.data_config(vig_jax.create_model("vig_h_t")).image_size == 224
