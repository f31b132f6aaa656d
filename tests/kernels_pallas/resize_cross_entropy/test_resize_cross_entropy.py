"""Cross entropy of logits that are resized to the labels."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import resize_cross_entropy
from kernels_pallas.resize_cross_entropy import IMPLEMENTATIONS
from kernels_pallas.resize_cross_entropy.pallas_triton.config import (
    Config,
    KernelConfig,
    candidates,
    heuristic,
)
from kernels_pallas.resize_cross_entropy.spec import ResizeCrossEntropySpec
from kernels_pallas.testing import interpret
from kernels_pallas.testing.op_test import OpTest


class TestResizeCrossEntropy(OpTest):
    op = "resize_cross_entropy"
    portable_cases = None  # XLA's gradient is not that of a plain formula
    wide_outputs = True
    forward_launches = ("resize_cross_entropy",)
    gradient_launches = ("resize_cross_entropy_gradient",)
    remat_launches = ("resize_cross_entropy", "resize_cross_entropy_gradient")

    def formula(self, case, logits, labels):
        """Computes every pixel by itself."""
        B, h, w, K = logits.shape
        H, W = labels.shape[1:]
        ignore = case.kwargs.get("ignore", 255)
        sums = np.zeros((3, B))
        for image, y, x in np.ndindex(B, H, W):
            label = labels[image, y, x]
            if label == ignore or label >= K:
                continue
            rows, columns = neighbours(y, H, h), neighbours(x, W, w)
            z = sum(p * q * logits[image, i, j] for i, p in rows for j, q in columns)
            sums[0, image] += np.log(np.exp(z).sum()) - z[label]
            sums[1, image] += np.argmax(z) == label
            sums[2, image] += 1
        return tuple(sums)

    def test_config(self):
        """Several programs per row, several chunks of pixels per cell, several parts."""
        case = self.cases(model=False)[0]
        kernel = KernelConfig(cells=2, pixels=4, part=4)
        config = Config(kernel, kernel)
        with interpret():
            self.check(case, case.bind(self.function, implementation=self.backend, config=config))


def neighbours(position, target, source):
    """Returns the indices and weights of the two values around a position of the resized axis."""
    centre = max(0.0, (position + 0.5) * source / target - 0.5)
    low = min(int(centre), source - 1)
    return (low, 1 - (centre - low)), (min(low + 1, source - 1), centre - low)


def run(logits, labels, implementation, **options):
    """Returns the results, and the gradient of the summed loss."""

    def loss(logits):
        outs = resize_cross_entropy(logits, labels, implementation=implementation, **options)
        return jnp.sum(outs[0]), outs

    with interpret():
        (_, outs), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(logits)
    return outs, gradient


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_pixels_without_a_class(implementation):
    """One image has no class at all; labels beyond the classes count as little as `ignore`."""
    rng = np.random.default_rng(0)
    logits = jnp.asarray(rng.standard_normal((2, 2, 3, 5)), "float32")
    labels = rng.integers(0, 5, (2, 8, 12)).astype(np.uint8)
    labels[0] = np.where(labels[0] == 0, 1, 7)
    labels[0, 0, 0] = 5
    (loss, hits, valid), gradient = run(logits, jnp.asarray(labels), implementation, ignore=1)
    assert (loss[0], hits[0], valid[0]) == (0, 0, 0)
    assert not np.any(gradient[0])
    assert valid[1] == np.sum(labels[1] != 1)
    assert loss[1] > 0
    assert np.any(gradient[1])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_first_of_equal_logits_wins(implementation):
    labels = jnp.asarray(np.arange(32).reshape(2, 4, 4) % 3, "uint8")
    (loss, hits, valid), _ = run(jnp.full((2, 1, 1, 3), 2.0), labels, implementation)
    np.testing.assert_allclose(loss, 16 * np.log(3), rtol=1e-6)
    np.testing.assert_array_equal(hits, np.sum(np.asarray(labels) == 0, axis=(1, 2)))
    np.testing.assert_array_equal(valid, [16, 16])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_confident_and_large_logits(implementation):
    """Losses that are small beside the logits, and logits whose exponentials overflow."""
    logits = 1000.0 + 10.0 * jnp.eye(4)[jnp.zeros((1, 2, 2), int)]
    (loss, hits, _), _ = run(logits, jnp.zeros((1, 4, 4), "uint8"), implementation)
    np.testing.assert_allclose(loss, 16 * np.log1p(3 * np.exp(-10.0)), rtol=1e-3)
    assert hits[0] == 16


def test_xla_in_forward_mode():
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        logits, change = (jnp.asarray(rng.standard_normal((1, 2, 2, 3))) for _ in range(2))
        labels = jnp.asarray(rng.integers(0, 3, (1, 4, 4)), "uint8")
        tangents = [
            jax.jvp(
                lambda x: resize_cross_entropy(x, labels, implementation=name)[0],  # noqa: B023
                (logits,),
                (change,),
            )[1]
            for name in ("xla", "reference")
        ]
    np.testing.assert_allclose(*tangents, rtol=1e-12)


def test_no_images():
    outs = resize_cross_entropy(jnp.ones((0, 2, 2, 3)), jnp.ones((0, 4, 4), "uint8"))
    assert [out.shape for out in outs] == [(0,)] * 3


@pytest.mark.parametrize(
    ("logits", "size", "reason"),
    [
        ((1, 2, 2, 3), (4, 6), "are not 2 to 32 times as large"),
        ((1, 4, 4, 3), (4, 4), "are not 2 to 32 times as large"),
        ((1, 2, 2, 3), (66, 66), "are not 2 to 32 times as large"),
        ((1, 2, 2, 1025), (4, 4), "at most 1024 classes, got 1025"),
        ((0, 2, 2, 3), (4, 4), "nothing to launch"),
        ((1, 4096, 4096, 32), (8192, 8192), "32-bit"),
    ],
)
def test_calls_without_a_kernel_are_refused(logits, size, reason):
    arrays = (
        jax.ShapeDtypeStruct(logits, "float32"),
        jax.ShapeDtypeStruct((logits[0], *size), "uint8"),
    )
    kernel = functools.partial(resize_cross_entropy, implementation="pallas_triton")
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(kernel, *arrays)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"logits": [1.0]}, TypeError, "logits must be a JAX or numpy array, got list"),
        ({"labels": [1]}, TypeError, "labels must be a JAX or numpy array, got list"),
        ({"labels": np.ones((2, 4, 4), int)}, TypeError, "labels must be uint8, got int.*: cast"),
        ({"logits": np.ones((2, 2, 3), "float32")}, ValueError, "logits must have four axes"),
        ({"logits": np.ones((2, 2, 0, 3), "float32")}, ValueError, "all but the first of at least"),
        ({"labels": np.ones((1, 4, 4), "uint8")}, ValueError, "a batch of 2 as the logits"),
        ({"labels": np.ones((2, 4), "uint8")}, ValueError, r"three axes .* got shape \(2, 4\)"),
        ({"ignore": 1.0}, TypeError, "ignore must be an integer, got float"),
        ({"ignore": 256}, ValueError, "ignore must be from 0 to 255, .* got 256"),
    ],
)
def test_errors(change, error, message):
    arguments = {"logits": np.ones((2, 2, 2, 3), "float32"), "labels": np.ones((2, 4, 4), "uint8")}
    with pytest.raises(error, match=message):
        inspect.unwrap(resize_cross_entropy)(**arguments | change)


@pytest.mark.parametrize("factor", [2, 3, 4, 16, 32])
@pytest.mark.parametrize("classes", [1, 11, 150, 1024])
def test_tilings_cover_every_pixel_and_class(factor, classes):
    for sides in ((1, 1), (32, 33)):
        height, width = (factor * side for side in sides)
        spec = ResizeCrossEntropySpec(2, *sides, height, width, classes, 255, np.dtype("float32"))
        for config in (heuristic(spec), *candidates(spec)):
            for kernel in (config.forward, config.gradient):
                assert kernel.parts(spec) * kernel.part >= classes
                assert kernel.across(spec) * kernel.cells >= sides[1] + 1
                assert kernel.chunks(spec) * kernel.pixels >= factor**2
                assert all(n & (n - 1) == 0 for n in (kernel.pixels, kernel.part, kernel.num_warps))
