"""The loss of segmentation against the golden values of mmsegmentation, and its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_seg
from vig_jax.tasks.segmentation.loss import segmentation_loss

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
# Pixels and averages: names like loss/some/default.
CASES = [
    name.removeprefix("loss/")
    for name in golden_seg.facts("losses")["arrays"]
    if name.startswith("loss/")
]


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


@functools.partial(jax.jit, static_argnums=2)
def loss_and_gradient(logits, labels, avg_non_ignore):
    def loss(logits):
        return segmentation_loss(logits, labels, avg_non_ignore)

    return jax.value_and_grad(loss, has_aux=True)(logits)


@pytest.mark.parametrize("case", CASES)
def test_golden_values(case, dtype):
    arrays = golden_seg.load("losses").arrays
    pixels, average = case.split("/")
    assert average in ("default", "avg_non_ignore")
    logits = jnp.asarray(golden_seg.last(arrays["input/logits"]), dtype)
    labels = jnp.asarray(arrays[f"label/{pixels}"])
    (loss, accuracy), gradient = loss_and_gradient(logits, labels, average == "avg_non_ignore")
    assert loss.dtype == gradient.dtype == dtype
    assert golden_seg.relative_error(loss, arrays[f"loss/{case}"]) < TOLERANCE[dtype]
    assert golden_seg.relative_error(accuracy, arrays[f"acc/{case}"][0]) < 1e-6
    expected = golden_seg.last(arrays[f"grad_input/{case}"])
    assert golden_seg.relative_error(gradient, expected) < TOLERANCE[dtype]


def test_whole_factor_against_numpy():
    """The sizes of training: labels are 4 or 16 times as large as the logits."""
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((2, 3, 2, 5)).astype(np.float32)
    labels = rng.integers(0, 5, (2, 12, 8)).astype(np.uint8)
    labels[0, :2] = 255
    full = np.asarray(jax.image.resize(logits, (2, 12, 8, 5), "bilinear"), np.float64)
    log_p = full - np.log(np.exp(full).sum(-1, keepdims=True))
    valid = labels != 255
    picked = np.take_along_axis(log_p, np.where(valid, labels, 0)[..., None].astype(int), -1)[
        ..., 0
    ]
    loss, accuracy = segmentation_loss(jnp.asarray(logits), jnp.asarray(labels))
    np.testing.assert_allclose(loss, -picked[valid].sum() / labels.size, rtol=1e-5)
    correct = (full.argmax(-1) == labels)[valid]
    np.testing.assert_allclose(accuracy, 100 * correct.mean(), rtol=1e-5)


def test_equal_logits_count_as_the_first_class():
    labels = jnp.array([[[0, 1, 2, 255]]], jnp.uint8)
    _, accuracy = segmentation_loss(jnp.zeros((1, 1, 4, 3)), labels)
    np.testing.assert_allclose(accuracy, 100 / 3, rtol=1e-6)


def test_memory_does_not_grow_with_the_batch():
    """Full-size logits of one image are 64 x 64 x 32 floats; of the batch sixteen times that."""

    def temporaries(batch):
        logits = jax.ShapeDtypeStruct((batch, 4, 4, 32), jnp.float32)
        labels = jax.ShapeDtypeStruct((batch, 64, 64), jnp.uint8)
        step = loss_and_gradient.lower(logits, labels, False).compile()
        return step.memory_analysis().temp_size_in_bytes

    image = 64 * 64 * 32 * 4
    assert temporaries(16) < 12 * image
    assert temporaries(16) < temporaries(2) + image
