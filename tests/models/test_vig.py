"""Sizes, initialisers, resolutions, drop path and errors of the plain models."""

from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import vig_jax
from tests import golden
from vig_jax.convert import upstream

FOLDER = Path(__file__).parent / "golden"
NAMES = ("vig_t", "vig_s", "vig_b")
SMALL = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def small_model(**overrides):
    return vig_jax.create_model("vig_t", **(SMALL | overrides))


def init(model, size=64):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))


def test_list_models():
    assert vig_jax.list_models() == NAMES


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(224, 224), (384, 384), (64, 160)])
def test_shapes_and_parameter_counts(name, size):
    case, _ = golden.load(FOLDER, name)
    model = vig_jax.create_model(name)
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert sum(x.size for x in jax.tree.leaves(variables)) == case["parameters"]
    logits = jax.eval_shape(model.apply, variables, images)
    chex.assert_shape(logits, (2, 1000))
    (features,) = jax.eval_shape(
        lambda v, x: model.apply(v, x, method="features"), variables, images
    )
    (info,) = model.feature_info
    chex.assert_shape(
        features, (2, size[0] // info.reduction, size[1] // info.reduction, info.num_chs)
    )


def test_initialisers_match_upstream():
    case, _ = golden.load(FOLDER, "vig_t")
    state_dict = upstream.from_params(init(vig_jax.create_model("vig_t"), 224)["params"])
    assert {key: list(value.shape) for key, value in state_dict.items()} == {
        key: shape for key, shape, *_ in case["keys"]
    }
    for key, _, _, std in case["keys"]:
        value = np.asarray(state_dict[key])
        if std == 0.0:  # norm scales and zero biases
            assert np.ptp(value) == 0.0, key
            is_norm = "norm" in key or key.endswith(("proj.1.weight", "proj.4.weight"))
            scale = is_norm and key.endswith("weight") and "gk_proj" not in key
            assert value.flat[0] == (1.0 if scale else 0.0), key
        else:  # a standard deviation of n draws is off by about 1/sqrt(2n), here 5 times that
            np.testing.assert_allclose(value.std(), std, rtol=8 / np.sqrt(value.size), err_msg=key)


@pytest.mark.parametrize("name", NAMES)
def test_drop_path_rates(name):
    case, _ = golden.load(FOLDER, name)
    model = vig_jax.create_model(name)
    rates = []

    def read(module, images):
        rates.extend(block.drop_path for block in module.blocks)
        return module(images)

    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    jax.eval_shape(lambda x: model.init(jax.random.key(0), x, method=read), images)
    np.testing.assert_allclose(rates, case["drop_path"], rtol=1e-6)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    from vig_jax.layers.drop_path import DropPath

    layer = DropPath(0.25)
    x = jnp.ones((4000, 3, 2))
    dropped = layer.apply({}, x, True, rngs={"dropout": jax.random.key(1)})
    values = np.unique(np.asarray(dropped))
    np.testing.assert_allclose(values, [0.0, 1 / 0.75], rtol=1e-6)
    assert np.all(np.ptp(np.asarray(dropped), axis=(1, 2)) == 0)
    assert abs(float(dropped.mean()) - 1.0) < 0.04
    chex.assert_trees_all_equal(layer.apply({}, x, False), x)


def test_training_path_is_the_evaluation_path_without_drop_path():
    model = small_model()
    variables = init(model)
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    apply = jax.jit(model.apply, static_argnames="train")
    evaluated = apply(variables, images)
    trained = apply(variables, images, train=True, rngs={"dropout": jax.random.key(2)})
    chex.assert_trees_all_equal(evaluated, trained)


def test_every_parameter_gets_a_gradient():
    model = small_model()
    variables = jax.tree.map(
        lambda x: x + 0.1 * jax.random.normal(jax.random.key(3), x.shape), init(model)
    )
    images = jax.random.normal(jax.random.key(1), (2, 64, 64, 3))
    grads = jax.jit(jax.grad(lambda v: jnp.sum(model.apply(v, images)[:, 0])))(variables)
    for path, grad in traverse_util.flatten_dict(grads, sep="/").items():
        assert float(jnp.max(jnp.abs(grad))) > 0, path


def test_bfloat16_follows_float32():
    variables = init(small_model())
    images = jax.random.normal(jax.random.key(1), (4, 64, 64, 3))
    exact = jax.jit(small_model().apply)(variables, images)
    rounded = jax.jit(small_model(dtype=jnp.bfloat16).apply)(variables, images)
    assert rounded.dtype == jnp.float32
    error = jnp.linalg.norm(rounded - exact) / jnp.linalg.norm(exact)
    assert float(error) < 2e-2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vig_jax.create_model("vig_ss"), "did you mean vig_s"),
        (lambda: vig_jax.create_model("resnet"), "known: vig_t, vig_s, vig_b"),
        (lambda: vig_jax.create_model("vig_t", imgsize=32), "did you mean img_size"),
        (lambda: small_model(num_heads=3), "multiple of 2 \\* num_heads"),
        (lambda: small_model(patch_size=5), "must be even"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 6, 64, 3), jnp.float32, "at least 7"),
        ((64, 64, 3), jnp.float32, r"\[B, H, W, 3\] is wanted"),
        ((1, 3, 64, 64), jnp.float32, r"\[B, H, W, 3\] is wanted"),
        ((1, 64, 64, 3), jnp.uint8, "floating-point"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_images(shape, dtype, message):
    model = small_model()
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct(shape, dtype))


def test_smallest_image():
    model = small_model()
    logits = jax.jit(model.apply)(init(model), jnp.ones((1, 7, 32, 3)))
    assert bool(jnp.all(jnp.isfinite(logits)))
