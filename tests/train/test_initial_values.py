"""Initial values: those of Flax to the bit, from one compiled draw for each kind of parameter."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.layers.linear import normal_002, torch_conv, uniform_bias
from vig_jax.models import create_model
from vig_jax.train.initial_values import grouped_draws


class Layers(nn.Module):
    """Three equal layers, one of another width, batch statistics, and a parameter without a key."""

    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.Dense(8, kernel_init=normal_002, bias_init=uniform_bias(8))(x)
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(4, kernel_init=torch_conv)(x))
        return x * self.param("scale", nn.initializers.ones, (4,))


def init(key):
    return Layers().init(key, jnp.zeros((2, 8)))


@pytest.mark.parametrize("make_key", [jax.random.PRNGKey, jax.random.key])
def test_values_are_those_of_flax(make_key):
    key = make_key(3)
    expected, found = jax.jit(init)(key), jax.jit(grouped_draws(init))(key)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_equal_draws_are_compiled_once():
    key = jax.random.key(0)
    plain, grouped = (jax.jit(f).lower(key).as_text() for f in (init, grouped_draws(init)))
    assert len(re.findall(r"call @_threefry_fold_in\w*\(%", plain)) == 7
    assert len(re.findall(r"call @_threefry_fold_in\w*\(%", grouped)) == 3


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_values_of_models_are_those_of_flax(name):
    model, key = create_model(name), jax.random.PRNGKey(0)
    images = jnp.zeros((1, 64, 64, 3))
    expected = jax.jit(model.init)(key, images)
    found = jax.jit(grouped_draws(lambda key: model.init(key, images)))(key)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
