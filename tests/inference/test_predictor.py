import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax import create_model, predictor
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1}
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_logits_of_any_number_of_images(dtype):
    model = create_model("vig_t", num_classes=3, dtype=dtype, **TINY)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 24, 3)))
    predict = predictor(model, variables, 2, (16, 24))
    images = normalise(jnp.asarray(IMAGES), IMAGENET_MEAN, IMAGENET_STD)
    expected = np.concatenate(
        [np.asarray(jax.jit(model.apply)(variables, images[i : i + 2])) for i in (0, 2, 3)]
    )[[0, 1, 2, 3, 5]]
    logits = predict(IMAGES)
    assert logits.dtype == jnp.float32
    # float32: the order of sums may differ; bfloat16: one rounding may go the other way.
    np.testing.assert_allclose(logits, expected, atol=2e-2 if dtype == jnp.bfloat16 else 1e-5)
    np.testing.assert_array_equal(predict(jnp.asarray(IMAGES)), logits)
    np.testing.assert_array_equal(predict(IMAGES[:2]), logits[:2])
    kernel = predict.variables["params"]["blocks_0"]["mlp"]["gate_proj"]["kernel"]
    assert kernel.dtype == dtype
    assert predict.variables["params"]["head"]["kernel"].dtype == jnp.float32


def test_weights_in_the_program():
    model = create_model("vig_t", num_classes=3, **TINY)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 24, 3)))
    predict = predictor(model, variables, 2, (16, 24), weights_in_program=True)
    assert predict.variables == {}
    assert predict.compiled.memory_analysis().argument_size_in_bytes == IMAGES[:2].nbytes
    expected = predictor(model, variables, 2, (16, 24))(IMAGES)
    np.testing.assert_allclose(predict(IMAGES), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), "float32"),
        (IMAGES[:, :, :16], r"must be uint8 \[N, 16, 24, 3\]"),
        (IMAGES[:0], "no image"),
    ],
)
def test_bad_images(images, message, unchecked):
    model = create_model("vig_t", num_classes=3, **TINY)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 24, 3)))
    predict = predictor(model, variables, 2, (16, 24))
    with pytest.raises(ValueError, match=message):
        predict(images)


def test_bad_sizes():
    with pytest.raises(ValueError, match="batch_size=0"):
        predictor(create_model("vig_t"), {}, 0, 224)
