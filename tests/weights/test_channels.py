"""`in_chans`: models for images of other channels, and the weights for RGB fitted to them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from tests.weights import dense_case
from vig_jax.errors import ConfigError, WeightsError
from vig_jax.weights.load import save_safetensors

SIZES = {
    "vig_t": {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 1},
    "vig_h_t": {"embed_dims": (32,) * 4, "depths": (1,) * 4, "num_heads": (1,) * 4},
}
NAMES = list(SIZES)


def random_variables(model, channels):
    images = jax.ShapeDtypeStruct((1, 32, 32, channels), np.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), images)
    generator = np.random.default_rng(0)
    return jax.tree.map(lambda x: generator.normal(0, 0.1, x.shape).astype(np.float32), shapes)


@pytest.fixture(params=NAMES)
def case(request, tmp_path):
    """The name of a model, its RGB variables and a file of them."""
    model = vig_jax.create_model(request.param, num_classes=3, **SIZES[request.param])
    variables = random_variables(model, 3)
    file = tmp_path / "rgb.safetensors"
    save_safetensors(variables["params"], file, model_name=request.param, averaged=None)
    return request.param, model, variables, file


def test_a_gray_image_has_the_logits_of_rgb(case):
    name, rgb, variables, file = case
    rgb = rgb.clone(gla_implementation="reference")  # compiles fastest
    gray = vig_jax.create_model(name, num_classes=3, in_chans=1, **SIZES[name])
    gray = gray.clone(gla_implementation="reference")
    fitted = vig_jax.load_weights(file, in_chans=1, **SIZES[name])
    images = jax.random.normal(jax.random.key(1), (2, 32, 32, 1))
    logits = jax.jit(gray.apply)(fitted, images)
    expected = jax.jit(rgb.apply)(variables, jnp.repeat(images, 3, axis=-1))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_more_channels_repeat_the_weights(case, caplog):
    name, _, variables, file = case
    fitted = vig_jax.load_weights(file, in_chans=5, **SIZES[name])
    old = variables["params"]["patch_embed"]["conv1"]["kernel"]  # [h, w, in, out]
    new = fitted["params"]["patch_embed"]["conv1"]["kernel"]
    np.testing.assert_allclose(new, old[:, :, [0, 1, 2, 0, 1]] * 3 / 5, rtol=1e-6)
    assert "weights for 3 channels are repeated for 5" in caplog.text


def test_mistakes(case):
    name, _, _, file = case
    with pytest.raises(ConfigError, match="in_chans=0 must be at least 1"):
        vig_jax.create_model(name, in_chans=0)
    model = vig_jax.create_model(name, in_chans=2, num_classes=3, **SIZES[name])
    with pytest.raises(ValueError, match=r"they must be \[B, H, W, 2\]"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    save_safetensors(random_variables(model, 2)["params"], file, model_name=name, averaged=None)
    with pytest.raises(WeightsError, match=r"shapes differ.*patch_embed"):
        vig_jax.load_weights(file, **SIZES[name])


def test_a_segmenter_of_gray_images(tmp_path):
    _, variables = dense_case.segmenter("vig_h_t")
    file = tmp_path / "rgb.safetensors"
    mutable = {key: tree for key, tree in variables.items() if key != "params"}
    save_safetensors(
        variables["params"], file, model_name="vig_h_t", averaged=None, mutable=mutable
    )
    sizes = dense_case.SEGMENTERS["vig_h_t"] | {"in_chans": 1}
    gray = vig_jax.load_weights(file, **sizes)["params"]["backbone"]["patch_embed"]["conv1"]
    kernel = variables["params"]["backbone"]["patch_embed"]["conv1"]["kernel"]
    np.testing.assert_allclose(gray["kernel"], kernel.sum(axis=2, keepdims=True), rtol=1e-5)
