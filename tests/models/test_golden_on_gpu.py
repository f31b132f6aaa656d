"""Whole models with the Pallas kernels on a GPU against upstream's float64 values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.testing import launches, rms_relative_error
from tests import golden
from tests.models import test_golden as cases

BFLOAT16_RATIO = 1.5  # of the errors of logits; up to 1.26 seen on an H200

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU"),
]
build = functools.partial(cases.build, gla_implementation=None)


@pytest.mark.parametrize("name", [*cases.EVALUATED, "plain_eps", "hier_x", "hier_eps"])
def test_small_models(name):
    model, variables, case, arrays = build(name, cases.UPSTREAM_EVAL, "float32")
    for tag, shape in case["images"].items():
        logits = jax.jit(model.apply)(variables, golden.images(name, tag, shape))
        expected = arrays.get(f"logits64_f64interp.eval.{tag}", arrays[f"logits64.eval.{tag}"])
        assert golden.relative_error(logits, expected) < cases.LOGITS["float32"], tag


@pytest.mark.parametrize("name", cases.FULL)
def test_full_size_logits(name):
    model, variables, _, arrays = build(name, cases.UPSTREAM_EVAL, "float32")
    images = golden.images(name, "native", (2, 3, 224, 224))
    expected = arrays["logits64.eval.native"]
    assert launches(model.apply, variables, images).total() > 4 * sum(
        n for _, n in model.stage_sizes
    )
    logits = jax.jit(model.apply)(variables, images)
    assert golden.relative_error(logits, expected) < cases.FULL_SIZE_LOGITS
    # bfloat16 loses digits in any implementation: the kernels may lose no more than XLA on a CPU.
    narrow = model.clone(dtype=jnp.bfloat16)
    errors = []
    for device in (jax.local_devices()[0], jax.local_devices(backend="cpu")[0]):
        placed = jax.device_put((variables, images), device)
        errors.append(rms_relative_error(jax.jit(narrow.apply)(*placed), expected))
    assert errors[0] < BFLOAT16_RATIO * errors[1], errors


@pytest.mark.parametrize("name", ["plain_s", "hier_a", "vig_t", "vig_h_t"])
def test_gradients(name):
    model, variables, case, arrays = build(name, 0.5, "float32")
    shape = case["images"]["native"] if name in cases.SMALL else (2, 3, 224, 224)
    images = golden.images(name, "native", shape)[: len(arrays["logits64.train.native"])]
    logits, loss, gradients = cases.forward_and_gradients(model, variables, images, name)
    expected = arrays["logits64.train.native"]
    assert golden.relative_error(logits, expected) < cases.LOGITS["float32"]
    np.testing.assert_allclose(loss, arrays["loss64"], rtol=1e-4)
    cases.check_digests(gradients, arrays, cases.DIGESTS["float32"])
