import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax import create_model, predictor
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1}
TINY |= {"gla_implementation": "reference"}  # compiles fastest
IMAGES = np.random.default_rng(0).integers(0, 256, (5, 16, 24, 3), np.uint8)


@functools.cache
def small(dtype=jnp.float32):
    """Returns a model, random variables and a compiled predictor."""
    model = create_model("vig_t", num_classes=3, dtype=dtype, **TINY)
    generator = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((1, 16, 24, 3), jnp.float32)
    variables = jax.tree.map(
        lambda x: jnp.asarray((x.ndim == 1) + 0.2 * generator.standard_normal(x.shape), x.dtype),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )
    return model, variables, predictor(model, variables, 2, (16, 24))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_logits_of_any_number_of_images(dtype):
    model, variables, predict = small(dtype)
    images = normalise(jnp.asarray(IMAGES), IMAGENET_MEAN, IMAGENET_STD)
    apply = jax.jit(model.apply)
    expected = np.concatenate([np.asarray(apply(variables, images[i : i + 2])) for i in (0, 2, 3)])[
        [0, 1, 2, 3, 5]
    ]
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
    model, variables, usual = small()
    predict = predictor(model, variables, 2, (16, 24), weights_in_program=True)
    assert predict.variables == {}
    assert predict.compiled.memory_analysis().argument_size_in_bytes == IMAGES[:2].nbytes
    np.testing.assert_allclose(predict(IMAGES), usual(IMAGES), atol=1e-5)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (IMAGES.astype(np.float32), "float32"),
        (IMAGES[:, :, :16], r"must be uint8 \[N, 16, 24, 3\]"),
        (IMAGES[:0], "no image"),
    ],
)
def test_bad_images(images, message, unchecked):
    predict = small()[-1]
    with pytest.raises(ValueError, match=message):
        predict(images)


def test_bad_sizes():
    with pytest.raises(ValueError, match="batch_size=0"):
        predictor(create_model("vig_t"), {}, 0, 224)
