"""The hierarchical models: pyramid, ragged sizes, norms for dense tasks, initialisers, errors."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from tests import golden
from vig_jax.weights import upstream

FOLDER = Path(__file__).parent / "golden"
SMALL = {"embed_dims": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]}


def small_model(**overrides):
    settings = {"num_classes": 5, "gla_implementation": "reference"} | SMALL | overrides
    return vig_jax.create_model("vig_h_t", **settings)


def test_sizes_given_as_lists_are_kept_as_tuples():
    model = small_model()
    assert model.embed_dims == (8, 8, 16, 16)
    hash(model)


@pytest.mark.parametrize("size", [(32, 32), (33, 97), (71, 64)])
def test_strides_round_up(size):
    model = small_model()
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    logits, variables = jax.eval_shape(model.init_with_output, jax.random.key(0), images)
    assert logits.shape == (1, 5)
    features = functools.partial(model.apply, method="features")
    maps = jax.eval_shape(features, variables, images)
    assert [info.reduction for info in model.feature_info] == [4, 8, 16, 32]
    for x, info in zip(maps, model.feature_info, strict=True):
        rows, columns = (-(-side // info.reduction) for side in size)
        assert x.shape == (1, rows, columns, info.num_chs)


def test_out_norms():
    generator = np.random.default_rng(0)
    images = jnp.asarray(generator.standard_normal((2, 64, 32, 3)), jnp.float32)
    model, without = small_model(out_norms=True), small_model()

    def parameter(path, x):  # norms as they start: scale 1, bias 0
        if x.ndim == 1:
            return np.full(x.shape, path[-1].key == "scale", np.float32)
        return 0.2 * generator.standard_normal(x.shape).astype(np.float32)

    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    variables = jax.tree.map_with_path(parameter, variables)
    bare = {name: v for name, v in variables["params"].items() if "out_norm" not in name}
    assert variables["params"].keys() - bare.keys() == {f"out_norm_{i}" for i in range(4)}
    assert jax.tree.structure(bare) == jax.tree.structure(
        jax.eval_shape(without.init, jax.random.key(0), images)["params"]
    )
    assert [info.module for info in model.feature_info] == [f"out_norm_{i}" for i in range(4)]

    @jax.jit
    def both(variables):
        return (
            model.apply(variables, images, method="features"),
            without.apply({"params": bare}, images, method="features"),
            model.apply(variables, images),
            without.apply({"params": bare}, images),
        )

    normalised, raw, logits, logits_without = both(variables)
    for x, y in zip(normalised, raw, strict=True):
        y = np.asarray(y, np.float64)
        expected = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, logits_without, rtol=1e-5, atol=1e-6)


def test_initialisers_match_upstream():
    case, _ = golden.load(FOLDER, "vig_h_t")
    stored = {key: (shape, std) for key, shape, _, std in case["keys"]}
    # One block a stage: the others start from the same distributions.
    model = vig_jax.create_model("vig_h_t", depths=(1, 1, 1, 1), gla_implementation="reference")
    init = jax.jit(model.init)(jax.random.key(0, impl="rbg"), jnp.zeros((1, 32, 32, 3)))
    state_dict = upstream.from_params(init["params"])
    assert state_dict.keys() < stored.keys()
    for key, value in state_dict.items():
        shape, std = stored[key]
        assert list(value.shape) == shape
        if std == 0.0:  # norm scales and zero biases
            is_scale = key.endswith("weight")
            assert np.ptp(value) == 0.0, key
            assert value.flat[0] == (1.0 if is_scale else 0.0), key
        else:  # a standard deviation of n draws is off by about 1/sqrt(2n), here 5 times that
            np.testing.assert_allclose(value.std(), std, rtol=8 / np.sqrt(value.size), err_msg=key)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 31, 64, 3), jnp.float32, "31x64 pixels; .* at least 32"),
        ((1, 64, 31, 3), jnp.float32, "64x31 pixels; .* at least 32"),
        ((64, 64, 3), jnp.float32, r"must be \[B, H, W, 3\]"),
        ((1, 3, 64, 64), jnp.float32, r"must be \[B, H, W, 3\]"),
        ((1, 64, 64, 3), jnp.uint8, "must be normalised floats"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_images(shape, dtype, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(small_model().init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))
