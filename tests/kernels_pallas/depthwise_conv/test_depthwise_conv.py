"""Depthwise convolution: every implementation against float64, and its kernels on a GPU."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from kernels_pallas.depthwise_conv import IMPLEMENTATIONS, depthwise_conv, pallas_triton, xla
from kernels_pallas.depthwise_conv.pallas_triton.config import Config, KernelConfig, heuristic
from kernels_pallas.depthwise_conv.spec import DepthwiseConvSpec
from kernels_pallas.testing import TOLERANCES, interpret, launches, rms_relative_error

NAME = "pallas_triton"
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU")
activations = pytest.mark.parametrize("activation", [None, "silu"])
dtypes = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])

# Two bands of rows, images that share a tile, ragged columns and channels, maps of one row or
# column, a single pixel.
SHAPES = [(3, 5, 7, 5), (2, 14, 14, 16), (1, 19, 3, 20), (1, 7, 1, 40), (2, 1, 9, 3), (1, 1, 1, 1)]


def make(shape, dtype):
    generator = np.random.default_rng(sum(shape))

    def normal(*shape):
        return jnp.asarray(generator.standard_normal(shape), dtype)

    return normal(*shape), normal(3, 3, 1, shape[3]), normal(*shape)


def spec_of(x, activation):
    return DepthwiseConvSpec(*x.shape, x.dtype, activation)


def both(run):
    """Output and both gradients."""

    def call(x, kernel, cotangent):
        out, pullback = jax.vjp(run, x, kernel)
        return out, *pullback(cotangent)

    return jax.jit(call)


def in_float64(arguments, activation):
    """By pixel, in numpy; the gradients are those of its sums."""
    x, kernel, cotangent = (np.asarray(a, np.float64) for a in arguments)
    _, height, width, _ = x.shape
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    sums = np.zeros_like(x)
    for y in range(height):
        for z in range(width):
            window = padded[:, y : y + 3, z : z + 3]
            sums[:, y, z] = (window * kernel[:, :, 0]).sum((1, 2))
    if activation == "silu":
        gate = 1 / (1 + np.exp(-sums))
        cotangent = cotangent * (gate + sums * gate * (1 - gate))
        sums = sums * gate
    grad_padded, grad_kernel = np.zeros_like(padded), np.zeros_like(kernel)
    for y in range(height):
        for z in range(width):
            here = cotangent[:, y, z][:, None, None]
            grad_padded[:, y : y + 3, z : z + 3] += here * kernel[:, :, 0]
            grad_kernel[:, :, 0] += (here * padded[:, y : y + 3, z : z + 3]).sum(0)
    return sums, grad_padded[:, 1:-1, 1:-1], grad_kernel


def check(run, arguments, activation):
    tolerance = TOLERANCES[arguments[0].dtype.name]
    allowed = (tolerance.forward, tolerance.gradient, tolerance.gradient)
    actual, expected = both(run)(*arguments), in_float64(arguments, activation)
    for name, mine, wanted, most in zip(
        ("out", "grad_x", "grad_kernel"), actual, expected, allowed, strict=True
    ):
        assert mine.dtype == arguments[0].dtype
        error = rms_relative_error(mine, wanted)
        assert error <= most, f"{name} is off by {error:.2e} > {most:.0e}"


@pytest.mark.parametrize(
    ("shape", "dtype", "activation"),
    [
        *((shape, "float32", "silu") for shape in SHAPES),
        *((shape, "bfloat16", None) for shape in SHAPES),
        (SHAPES[0], "bfloat16", "silu"),
        (SHAPES[0], "float32", None),
    ],
    ids=str,
)
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_against_float64(implementation, shape, dtype, activation):
    run = functools.partial(depthwise_conv, activation=activation, implementation=implementation)
    check(run, make(shape, dtype), activation)


@activations
@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_float64(implementation, activation):
    with jax.enable_x64(True):
        run = functools.partial(
            depthwise_conv, activation=activation, implementation=implementation
        )
        check(run, make((2, 5, 4, 6), "float64"), activation)


@activations
def test_both_plain_forms_agree(activation):
    """What other platforms than the CPU take runs there too, only slower."""
    arguments = make((2, 5, 4, 6), "float32")
    spec = spec_of(arguments[0], activation)
    check(functools.partial(xla.grouped_conv, spec), arguments, activation)


@pytest.mark.parametrize(("dtype", "activation"), [("float32", "silu"), ("bfloat16", None)])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_interpreted(shape, dtype, activation):
    run = functools.partial(depthwise_conv, activation=activation, implementation=NAME)
    with interpret():
        check(run, make(shape, dtype), activation)


@pytest.mark.parametrize(
    "tiling",
    [
        KernelConfig(channels=16, vector=2, num_warps=1, rows=3, ahead=0, strips=2),
        KernelConfig(channels=8, vector=4, num_warps=2, rows=2, ahead=3, strips=1),
        KernelConfig(channels=64, vector=2, num_warps=1, rows=8, ahead=1, strips=3),
    ],
    ids=str,
)
def test_interpreted_tilings(tiling):
    arguments = make((3, 8, 5, 20), "float32")
    config = Config(dataclasses.replace(tiling, strips=0), tiling)
    spec = spec_of(arguments[0], "silu")
    with interpret():
        check(functools.partial(pallas_triton.run, spec, config=config), arguments, "silu")


def check_that_nothing_leaks():
    """What is in one image and channel shows nowhere else: not in rows, columns, images beside."""
    x, kernel, cotangent = make((3, 5, 4, 7), "bfloat16")
    run = both(functools.partial(depthwise_conv, activation="silu", implementation=NAME))
    wanted = run(x, kernel, cotangent)
    actual = run(x.at[1, :, :, 2].set(jnp.nan), kernel, cotangent)
    elsewhere = np.ones(x.shape, bool)
    elsewhere[1, :, :, 2] = False
    for mine, other in zip(actual[:2], wanted[:2], strict=True):
        np.testing.assert_array_equal(mine[elsewhere], other[elsewhere])
        assert np.isnan(np.asarray(mine, np.float32)[~elsewhere]).all()
    others = np.arange(7) != 2
    np.testing.assert_array_equal(actual[2][..., others], wanted[2][..., others])


def test_interpreted_nothing_leaks():
    with interpret():
        check_that_nothing_leaks()


def lowered(run, *arguments):
    traced = jax.jit(run).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def shapes(shape, dtype):
    x = jax.ShapeDtypeStruct(shape, dtype)
    return x, jax.ShapeDtypeStruct((3, 3, 1, shape[3]), dtype), x


VIG_SHAPES = [(256, 14, 14, 384), (16, 64, 64, 192), (256, 56, 56, 96), (1, 7, 7, 768)]


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *((shape, "bfloat16") for shape in VIG_SHAPES),
        (VIG_SHAPES[0], "float32"),
        ((2, 17, 3, 50), "float32"),
        ((1, 1, 1, 1), "bfloat16"),
    ],
    ids=str,
)
def test_lowers_for_cuda(shape, dtype):
    run = functools.partial(depthwise_conv, activation="silu", implementation=NAME)
    assert "depthwise_conv_gradient" in lowered(both(run), *shapes(shape, dtype))


def test_no_kernel_is_launched_in_vain():
    arguments = shapes((2, 14, 14, 64), "bfloat16")
    run = functools.partial(depthwise_conv, implementation=NAME)
    forward, gradient = "depthwise_conv_forward", "depthwise_conv_gradient"
    assert launches(run, *arguments[:2]) == {forward: 1}
    assert launches(both(run), *arguments) == {forward: 1, gradient: 1}
    run = functools.partial(run, activation="silu")
    assert launches(run, *arguments[:2]) == {forward: 1}
    through_activation = {"depthwise_conv_activation_gradient": 1, forward: 1, gradient: 1}
    assert launches(both(run), *arguments) == through_activation


def test_the_default_takes_the_kernels_on_cuda_only():
    traced = jax.jit(depthwise_conv).trace(*shapes((2, 14, 14, 64), "bfloat16")[:2])
    assert "depthwise_conv_forward" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "depthwise_conv_forward" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("shape", [*VIG_SHAPES, *SHAPES], ids=str)
def test_the_heuristic_serves(shape):
    spec = DepthwiseConvSpec(*shape, jnp.dtype("bfloat16"))
    config = heuristic(spec)
    for tiling in (config.forward, config.backward):
        assert (tiling.bands(spec) - 1) * tiling.rows < shape[1] <= tiling.bands(spec) * tiling.rows
        assert tiling.channels & (tiling.channels - 1) == 0
        assert tiling.strips <= tiling.tiles(spec)
    assert shape[0] < 16 or config.forward.programs(spec) >= 640


def test_an_empty_batch():
    x, kernel, _ = make((1, 3, 3, 4), "float32")
    assert depthwise_conv(x[:0], kernel).shape == (0, 3, 3, 4)


# The tests' shape checker would speak before the operator does.
bare = inspect.unwrap(kernels_pallas.depthwise_conv)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a JAX or numpy array, got list"),
        ({"x": np.zeros((1, 3, 3, 4), int)}, TypeError, "x must be one of float32, .* got int32"),
        ({"x": np.zeros((3, 3, 4), "f4")}, ValueError, r"x must have four axes .*\(3, 3, 4\)"),
        ({"x": np.zeros((1, 0, 3, 4), "f4")}, ValueError, r"at least 1, got shape \(1, 0, 3, 4\)"),
        ({"kernel": np.zeros((3, 3, 4, 1), "f4")}, ValueError, r"\(3, 3, 1, 4\), got \(3, 3, 4"),
        ({"kernel": np.zeros((3, 3, 1, 4), "f2")}, TypeError, "type of x, float32, got float16: c"),
        ({"activation": "gelu"}, ValueError, "activation must be None or \"silu\", got 'gelu'"),
        ({"implementation": "xal"}, ValueError, "unknown implementation 'xal'; did you mean 'xla'"),
    ],
    ids=str,
)
def test_says_what_is_wrong(change, error, message):
    arguments = {"x": np.zeros((1, 3, 3, 4), "f4"), "kernel": np.zeros((3, 3, 1, 4), "f4")} | change
    with pytest.raises(error, match=message):
        bare(**arguments)


def test_says_what_the_kernels_do_not_serve():
    x, kernel, _ = make((1, 3, 3, 4), "float16")
    with pytest.raises(NotImplementedError, match="bfloat16 or float32, got float16"):
        depthwise_conv(x, kernel, implementation=NAME)
    assert IMPLEMENTATIONS[0] == NAME
    assert depthwise_conv(x, kernel).dtype == jnp.float16


GPU_SHAPES = [
    *SHAPES,
    (256, 14, 14, 384),
    (33, 14, 14, 192),
    (3, 64, 64, 192),
    (2, 128, 128, 192),
    (9, 56, 56, 96),
    (5, 28, 28, 192),
    (256, 7, 7, 768),
    (1, 14, 14, 48),
    (2, 37, 33, 100),
]


@on_gpu
@pytest.mark.gpu
@activations
@dtypes
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_on_a_gpu(shape, dtype, activation):
    run = functools.partial(depthwise_conv, activation=activation, implementation=NAME)
    check(run, make(shape, dtype), activation)


@on_gpu
@pytest.mark.gpu
def test_transformations_on_a_gpu():
    arguments = make((6, 14, 14, 64), "bfloat16")
    run = functools.partial(depthwise_conv, activation="silu", implementation=NAME)
    expected = both(run)(*arguments)
    jax.tree.map(np.testing.assert_array_equal, both(run)(*arguments), expected)
    jax.tree.map(np.testing.assert_array_equal, both(jax.checkpoint(run))(*arguments), expected)
    stacked = [jnp.stack([a, a[::-1]]) for a in arguments]
    mapped = jax.jit(jax.vmap(both(run)))(*stacked)
    for mine, wanted in zip(mapped, expected, strict=True):
        np.testing.assert_array_equal(mine[0], wanted)


@on_gpu
@pytest.mark.gpu
def test_nothing_leaks_on_a_gpu():
    check_that_nothing_leaks()
