from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.augment.mixup import mix_targets
from vig_jax.tasks.losses import cross_entropy, soft_cross_entropy


@pytest.fixture(params=["float32", "float64"])
def golden(request):
    """The arrays, in a precision, and the tolerance that goes with it."""
    with (
        jax.enable_x64(request.param == "float64"),
        np.load(Path(__file__).parent / "golden" / "losses.npz") as arrays,
    ):
        yield dict(arrays), request.param, {"float32": 1e-6, "float64": 1e-12}[request.param]


@pytest.mark.parametrize("lam", [1.0, 0.3, 0.77])
def test_soft_cross_entropy_matches_timm(golden, lam):
    arrays, dtype, tolerance = golden
    logits = jnp.asarray(arrays["logits"], dtype)
    targets = arrays[f"soft_target.{lam}"]
    loss = jnp.mean(soft_cross_entropy(logits, jnp.asarray(targets, dtype)))
    np.testing.assert_allclose(loss, arrays[f"soft_ce.{lam}"], rtol=tolerance)
    mixed = mix_targets(jnp.asarray(arrays["target"]), jnp.asarray([lam]), 11, 0.1)
    np.testing.assert_allclose(mixed, targets, atol=1e-7)


def test_smoothed_and_plain_cross_entropy(golden):
    arrays, dtype, tolerance = golden
    logits, labels = jnp.asarray(arrays["logits"], dtype), jnp.asarray(arrays["target"])
    smooth = 0.9 * jax.nn.one_hot(labels, 11, dtype=dtype) + 0.1 / 11
    loss = jnp.mean(soft_cross_entropy(logits, smooth))
    np.testing.assert_allclose(loss, arrays["label_smoothing_ce"], rtol=tolerance)
    loss = jnp.mean(cross_entropy(logits, labels))
    np.testing.assert_allclose(loss, arrays["ce"], rtol=tolerance)


def test_bfloat16_logits_are_widened():
    logits = jnp.array([[1000.0, 0.0]], jnp.bfloat16)
    loss = cross_entropy(logits, jnp.array([1]))
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, [1000.0])
