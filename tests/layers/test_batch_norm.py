"""Batch normalisation: PyTorch's statistics. The golden values of heads and neck test it too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.errors import ConfigError
from vig_jax.layers.batch_norm import BatchNorm

VARIABLES = {
    "params": {"scale": jnp.array([2.0, 0.5]), "bias": jnp.array([1.0, -1.0])},
    "batch_stats": {"mean": jnp.array([1.0, 2.0]), "var": jnp.array([4.0, 0.25])},
}


def normal(shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_training_normalises_by_the_biased_variance_and_keeps_the_unbiased_one():
    x = normal((2, 1, 2, 2))  # four values per channel: the two variances differ by a third
    wide = x.astype(np.float64)
    mean, var = wide.mean((0, 1, 2)), wide.var((0, 1, 2))
    out, moved = BatchNorm().apply(VARIABLES, jnp.asarray(x), True, mutable=["batch_stats"])
    expected = (wide - mean) / np.sqrt(var + 1e-5) * [2.0, 0.5] + [1.0, -1.0]
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    stats = moved["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.9 * np.array([1, 2]) + 0.1 * mean, rtol=1e-6)
    np.testing.assert_allclose(
        stats["var"], 0.9 * np.array([4, 0.25]) + 0.1 * var * 4 / 3, rtol=1e-6
    )


def test_evaluation_uses_the_running_statistics():
    x = normal((1, 1, 1, 2))  # one value per channel is enough
    expected = (x - [1.0, 2.0]) / np.sqrt(np.array([4.0, 0.25]) + 1e-5) * [2.0, 0.5] + [1.0, -1.0]
    actual = BatchNorm().apply(VARIABLES, jnp.asarray(x), False)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
    relu = BatchNorm("relu").apply(VARIABLES, jnp.asarray(x), False)
    np.testing.assert_allclose(relu, np.maximum(expected, 0), rtol=1e-5)


def test_small_variance_at_a_large_mean():
    """E[x^2] - E[x]^2 in float32 would lose a tenth of it."""
    x = 100 + 0.1 * normal((4, 8, 8, 1))
    variables = jax.tree.map(lambda x: x[:1], VARIABLES)
    _, moved = BatchNorm(momentum=1.0).apply(
        variables, jnp.asarray(x), True, mutable=["batch_stats"]
    )
    expected = x.astype(np.float64).var(ddof=1)
    np.testing.assert_allclose(moved["batch_stats"]["var"], expected, rtol=1e-4)


def test_statistics_of_bfloat16_are_float32():
    x = jnp.asarray(normal((4, 8, 8, 2)) + 3).astype(jnp.bfloat16)
    out, moved = BatchNorm(momentum=1.0).apply(VARIABLES, x, True, mutable=["batch_stats"])
    assert out.dtype == jnp.bfloat16
    mean = np.asarray(x, np.float64).mean((0, 1, 2))
    assert moved["batch_stats"]["mean"].dtype == jnp.float32
    np.testing.assert_allclose(moved["batch_stats"]["mean"], mean, rtol=1e-5)


def test_refuses_one_value_per_channel():
    with pytest.raises(ConfigError, match="at least 2 images"):
        BatchNorm().apply(VARIABLES, jnp.ones((1, 1, 1, 2)), True, mutable=["batch_stats"])


def test_initial_statistics():
    variables = BatchNorm().init(jax.random.key(0), jnp.asarray(normal((2, 2, 2, 3))), True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(3))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(3))
