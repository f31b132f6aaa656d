"""Logits of pixels: narrow operands, wide sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.testing import TOLERANCES, rms_relative_error
from vig_jax.heads.classification import PixelClassifier


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_against_float64(dtype):
    """Logits are float32 and as exact as the operands; gradients have the operands' dtypes."""
    keys = jax.random.split(jax.random.key(0), 3)
    x = jax.random.normal(keys[0], (2, 3, 5, 64), dtype)
    model = PixelClassifier(7)
    params = model.init(keys[1], x)["params"]
    weights = np.asarray(jax.random.normal(keys[2], (2, 3, 5, 7)), np.float64)

    def total(params, x):
        return jnp.sum(model.apply({"params": params}, x) * weights.astype(np.float32))

    logits = model.apply({"params": params}, x)
    assert logits.dtype == jnp.float32
    kernel, exact = np.asarray(params["kernel"], np.float64), np.asarray(x, np.float64)
    assert rms_relative_error(logits, exact @ kernel) < TOLERANCES[dtype].forward
    by_params, by_x = jax.grad(total, argnums=(0, 1))(params, x)
    assert (by_params["kernel"].dtype, by_x.dtype) == (jnp.float32, jnp.dtype(dtype))
    expected = np.einsum("bhwd,bhwk->dk", exact, weights)
    assert rms_relative_error(by_params["kernel"], expected) < TOLERANCES[dtype].gradient
    assert rms_relative_error(by_x, weights @ kernel.T) < TOLERANCES[dtype].gradient
    np.testing.assert_allclose(by_params["bias"], weights.sum((0, 1, 2)), rtol=1e-5)
