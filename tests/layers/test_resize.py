"""Resizing, pooling and convolutions of resized maps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.core.resize import bilinear_matrix, resize_bilinear
from tests import golden_seg
from vig_jax.layers import resize
from vig_jax.layers.resize import adaptive_avg_pool, resize_conv

TOLERANCE = {"float32": 1e-5, "float64": 1e-12}
FACTS = golden_seg.facts("operators")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def forward_and_gradient(function, x, cotangent):
    """Not compiled as a whole: the operations have few shapes between them."""
    out, pull = jax.vjp(function, x)
    return out, *pull(cotangent)


def check(case, function, dtype):
    arrays = golden_seg.load("operators").arrays
    x, cotangent = (
        jnp.asarray(golden_seg.last(arrays[f"{name}/{case}"]), dtype)
        for name in ("input", "cotangent")
    )
    out, gradient = jax.jit(functools.partial(forward_and_gradient, function))(x, cotangent)
    assert out.dtype == gradient.dtype == dtype
    for actual, name in ((out, "output"), (gradient, "grad_input")):
        expected = golden_seg.last(arrays[f"{name}/{case}"])
        assert golden_seg.relative_error(actual, expected) < TOLERANCE[dtype], name


@pytest.mark.parametrize("case", FACTS["resize"])
def test_resize_equals_the_golden_values(case, dtype):
    source, size = FACTS["resize"][case]
    assert golden_seg.load("operators").arrays[f"input/{case}"].shape[2:] == tuple(source)
    check(case, functools.partial(resize_bilinear, size=tuple(size)), dtype)


@pytest.mark.parametrize("case", FACTS["pool"])
def test_pooling_equals_the_golden_values(case, dtype):
    check(case, functools.partial(adaptive_avg_pool, size=FACTS["pool"][case][1]), dtype)


def test_whole_factors_equal_the_matrix():
    x = np.random.default_rng(0).standard_normal((2, 3, 1, 4))
    with jax.enable_x64(True):
        for factor in (2, 3, 16):
            rows = bilinear_matrix(3, 3 * factor)
            expected = np.einsum("th,bhwc->btwc", rows, x).repeat(factor, axis=2)
            run = jax.jit(functools.partial(resize_bilinear, size=(3 * factor, factor)))
            actual = run(jnp.asarray(x))
            np.testing.assert_allclose(actual, expected, rtol=1e-14, atol=1e-14)


def test_bfloat16_stays_near_float32():
    x = jax.random.normal(jax.random.key(0), (1, 5, 6, 3))
    for function in (
        functools.partial(resize_bilinear, size=(10, 12)),
        functools.partial(resize_bilinear, size=(7, 20)),
        functools.partial(adaptive_avg_pool, size=3),
    ):
        run = jax.jit(function)
        narrow = run(x.astype(jnp.bfloat16))
        assert narrow.dtype == jnp.bfloat16
        expected = run(x)
        error = jnp.max(jnp.abs(narrow.astype(jnp.float32) - expected))
        assert error < 0.01 * jnp.max(jnp.abs(expected))


# Sizes of the maps, and the size of the result. The largest map of the third case is reduced.
PYRAMIDS = {
    "halves": ([(8, 6), (4, 3), (2, 2), (1, 1)], (8, 6)),
    "odd": ([(9, 13), (5, 7), (3, 4), (2, 2)], (9, 13)),
    "larger": ([(5, 4), (7, 9), (6, 6), (1, 2)], (5, 4)),
}
CHANNELS, FEATURES = (3, 2, 4, 5), 3


def conv_inputs(sizes, size, dtype):
    rng = np.random.default_rng(1)
    maps = [
        jnp.asarray(rng.standard_normal((2, *s, c)), dtype)
        for s, c in zip(sizes, CHANNELS, strict=True)
    ]
    kernel = jnp.asarray(rng.standard_normal((3, 3, sum(CHANNELS), FEATURES)), dtype)
    return maps, kernel, jnp.asarray(rng.standard_normal((2, *size, FEATURES)), dtype)


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("case", PYRAMIDS)
def test_separate_form_equals_the_direct_one(case, forced, monkeypatch):
    sizes, size = PYRAMIDS[case]
    if forced:  # also where it costs more
        monkeypatch.setattr(resize, "is_separated", lambda *_: True)

    @functools.partial(jax.jit, static_argnums=3)
    def run(maps, kernel, cotangent, implementation):
        def conv(maps, kernel):
            return resize_conv(maps, kernel, size, implementation=implementation)

        out, pull = jax.vjp(conv, maps, kernel)
        return out, pull(cotangent)

    with jax.enable_x64(True):
        inputs = conv_inputs(sizes, size, jnp.float64)
        expected = jax.tree.leaves(run(*inputs, "direct"))
        for actual, other in zip(jax.tree.leaves(run(*inputs, "separate")), expected, strict=True):
            assert golden_seg.relative_error(actual, np.asarray(other)) < 1e-12


def test_direct_form_is_a_convolution_of_the_concatenation():
    sizes, size = PYRAMIDS["odd"]
    with jax.enable_x64(True):
        maps, kernel, _ = conv_inputs(sizes, size, jnp.float64)
        direct = functools.partial(resize_conv, size=size, implementation="direct")
        actual = jax.jit(lambda maps, kernel: direct(maps, kernel))(maps, kernel)
        resized = jax.jit(lambda maps: [resize_bilinear(y, size) for y in maps])(maps)
        x = np.concatenate(resized, axis=-1)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = sum(
        padded[:, i : i + size[0], j : j + size[1]] @ np.asarray(kernel[i, j])
        for i, j in np.ndindex(3, 3)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


def test_small_maps_are_separated():
    """The sizes of UPerHead for an image of 512 pixels; 57 G instead of 155 G."""
    size, width = (128, 128), 512
    sides = (128, 64, 32, 16)
    assert [resize.is_separated((n, n), size, width, width) for n in sides] == [False, *[True] * 3]
    separated = sum(resize.separated_macs((n, n), size, width, width) for n in sides[1:])
    assert round((separated + resize.direct_macs(size, width, width)) / 1e9) == 57
    assert round(resize.direct_macs(size, 4 * width, width) / 1e9) == 155
    # A map that is nearly as large, and one that is larger.
    assert not resize.is_separated((120, 120), size, width, width)
    assert not resize.is_separated((6, 6), (1, 1), width, width)


def test_unknown_implementation():
    with pytest.raises(ValueError, match="'fast' must be 'separate' or 'direct'"):
        resize_conv([jnp.ones((1, 2, 2, 1))], jnp.ones((3, 3, 1, 1)), (2, 2), implementation="fast")
