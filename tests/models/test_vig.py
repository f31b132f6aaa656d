"""Initialisers, drop path, smallest and unfit images of the plain models."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from tests import golden
from vig_jax.layers.block import Block
from vig_jax.layers.drop_path import DropPath
from vig_jax.layers.norm import Residual, layer_norm
from vig_jax.weights import upstream

FOLDER = Path(__file__).parent / "golden"
SMALL = {"img_size": 64, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 5}


def small_model(**overrides):
    return vig_jax.create_model("vig_t", **(SMALL | overrides))


def init(model, size=64):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, size, size, 3)))


def test_initialisers_match_upstream():
    case, _ = golden.load(FOLDER, "vig_t")
    stored = {key: (shape, std) for key, shape, _, std in case["keys"]}
    # One block: the others start from the same distributions.
    state_dict = upstream.from_params(init(vig_jax.create_model("vig_t", depth=1))["params"])
    assert state_dict.keys() < stored.keys()
    for key, value in state_dict.items():
        shape, std = stored[key]
        assert list(value.shape) == shape
        if std == 0.0:  # norm scales and zero biases
            assert np.ptp(value) == 0.0, key
            is_norm = "norm" in key or key.endswith(("proj.1.weight", "proj.4.weight"))
            scale = is_norm and key.endswith("weight") and "gk_proj" not in key
            assert value.flat[0] == (1.0 if scale else 0.0), key
        else:  # a standard deviation of n draws is off by about 1/sqrt(2n), here 5 times that
            np.testing.assert_allclose(value.std(), std, rtol=8 / np.sqrt(value.size), err_msg=key)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    layer = DropPath(0.25)
    keep = layer.apply({}, 4000, True, rngs={"dropout": jax.random.key(1)})
    assert keep.shape == (4000,)
    np.testing.assert_allclose(np.unique(keep), [0.0, 1 / 0.75], rtol=1e-6)
    assert abs(float(keep.mean()) - 1.0) < 0.04
    assert layer.apply({}, 4000, False) is None
    assert DropPath(0.0).apply({}, 4000, True) is None


def test_the_branches_of_a_block_are_dropped_one_by_one():
    """A block in training is its evaluation with each branch of each sample times its factor."""
    sizes = {"features": 8, "num_heads": 2, "mlp_hidden": 16}
    block = Block(**sizes, drop_path=0.5, norm=functools.partial(layer_norm, jnp.float32))
    x = jax.random.normal(jax.random.key(3), (16, 2, 3, 8))

    def run(x):
        variables = block.init(jax.random.key(0), Residual(x), False)
        rngs = {"dropout": jax.random.key(1)}

        def captured(module, method):
            return method in ("__call__", "add")

        apply = functools.partial(block.apply, variables, capture_intermediates=captured)
        stream, trained = apply(Residual(x), True, rngs=rngs)
        evaluated = apply(Residual(x), False)[1]
        middle, normed = trained["intermediates"]["mlp_norm"]["add"][0]
        attention = evaluated["intermediates"]["attn"]["__call__"][0]
        factors = [trained["intermediates"][f"{name}_drop"] for name in ("attn", "mlp")]
        factors = [x["__call__"][0] for x in factors]
        mlp = block.bind(variables).mlp(normed)
        return factors, middle - x, attention, stream.total() - middle, mlp

    (attn_keep, mlp_keep), *branches = jax.tree.map(np.asarray, jax.jit(run)(x))
    assert set(attn_keep) == set(mlp_keep) == {0.0, 2.0}
    assert (attn_keep != mlp_keep).any()
    for keep, (trained, whole) in ((attn_keep, branches[:2]), (mlp_keep, branches[2:])):
        expected = keep[:, None, None, None] * whole
        np.testing.assert_allclose(trained, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((1, 6, 64, 3), jnp.float32, "at least 7"),
        ((64, 64, 3), jnp.float32, r"must be \[B, H, W, 3\]"),
        ((1, 3, 64, 64), jnp.float32, r"must be \[B, H, W, 3\]"),
        ((1, 64, 64, 3), jnp.uint8, "must be normalised floats"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_bad_images(shape, dtype, message):
    model = small_model()
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct(shape, dtype))


def test_smallest_image():
    model, images = small_model(depth=1), jnp.ones((1, 7, 32, 3))
    logits, _ = jax.jit(model.init_with_output)(jax.random.key(0), images)
    assert bool(jnp.all(jnp.isfinite(logits)))
