"""A linear map with SwiGLU's gate: implementations against float64, and the CUDA kernel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import linear_swiglu
from kernels_pallas.linear_swiglu import pallas_triton
from kernels_pallas.linear_swiglu.pallas_triton import Config
from kernels_pallas.linear_swiglu.spec import LinearSwigluSpec
from kernels_pallas.testing import TOLERANCES, interpret, launches, rms_relative_error

NAME = "pallas_triton"
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU")


def make(rows, features, width, dtype):
    """x [*rows, D], kernel [D, 2I] and a cotangent [*rows, I]; their products are about 2."""
    generator = np.random.default_rng(width)
    normal = generator.standard_normal
    kernel = 2 * features**-0.5 * normal((features, 2 * width))
    arrays = normal((*rows, features)), kernel, normal((*rows, width))
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def spec_of(x, kernel):
    return LinearSwigluSpec(x[..., 0].size, x.shape[-1], kernel.shape[1] // 2, x.dtype)


def with_gradients(run):
    def call(x, kernel, grad_out):
        out, pullback = jax.vjp(run, x, kernel)
        return out, *pullback(grad_out)

    return jax.jit(call)


def expected_from(x, kernel, grad_out):
    """Output and gradients by the formulas, in numpy's float64."""
    x, kernel, grad_out = (np.asarray(array, np.float64) for array in (x, kernel, grad_out))
    gate, y = np.split(x @ kernel, 2, axis=-1)
    sigmoid = 1 / (1 + np.exp(-gate))
    grad_gate = grad_out * y * sigmoid * (1 + gate * (1 - sigmoid))
    grad = np.concatenate([grad_gate, grad_out * gate * sigmoid], axis=-1)
    flat = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1])
    return gate * sigmoid * y, grad @ kernel.T, flat[0].T @ flat[1]


def check(run, arrays):
    """Checks the output alone, and with the gradients: they are computed in different ways."""
    x, kernel, _ = arrays
    tolerance = TOLERANCES[x.dtype.name]
    expected = expected_from(*arrays)
    actual = (jax.jit(run)(x, kernel), *with_gradients(run)(*arrays))
    allowed = (tolerance.forward,) * 2 + (tolerance.gradient,) * 2
    for mine, right, limit in zip(actual, (expected[0], *expected), allowed, strict=True):
        assert mine.dtype == x.dtype
        assert rms_relative_error(mine, right) <= limit


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["reference", "xla"])
@pytest.mark.parametrize("shape", [((2, 3), 12, 10), ((5,), 1, 1), ((), 7, 3)], ids=str)
def test_formula(name, shape, dtype):
    with jax.enable_x64(dtype == "float64"):
        check(functools.partial(linear_swiglu, implementation=name), make(*shape, dtype))


@pytest.mark.parametrize(
    ("shape", "tiling"),
    [
        (((2, 32), 64, 32), Config(rows=32, columns=16, depth=32)),
        (((70,), 48, 80), Config(rows=32, columns=32, depth=32)),
        (((3,), 16, 16), None),
    ],
    ids=str,
)
def test_interpreted_kernel(shape, tiling):
    arrays = make(*shape, "bfloat16")
    run = functools.partial(pallas_triton.run, spec_of(*arrays[:2]), config=tiling)
    with interpret():
        check(run, arrays)


def test_the_default():
    check(linear_swiglu, make((6,), 16, 32, "bfloat16"))


def lowered(run, *arguments):
    return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def arguments_of(rows, features, width, dtype="bfloat16"):
    shapes = (*rows, features), (features, 2 * width), (*rows, width)
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)


VIG_SHAPES = [
    *(((256, 196), *widths) for widths in ((192, 512), (384, 1024), (768, 2048))),
    ((256, 56, 56), 96, 256),
    ((256, 7, 7), 768, 2048),
    ((256, 56, 56), 128, 352),
    ((256, 7, 7), 1024, 2752),
]


@pytest.mark.parametrize("shape", VIG_SHAPES, ids=str)
def test_lowers_for_cuda(shape):
    run = functools.partial(linear_swiglu, implementation=NAME)
    assert len(lowered(with_gradients(run), *arguments_of(*shape))) > 0
    assert len(lowered(run, *arguments_of(*shape)[:2])) > 0


def test_the_product_stays_inside_unless_a_derivative_needs_it():
    x, weights, grad_out = arguments_of((2, 196), 192, 512)
    run = functools.partial(linear_swiglu, implementation=NAME)
    assert launches(run, x, weights) == {"linear_swiglu": 1}
    gradients = launches(with_gradients(run), x, weights, grad_out)
    assert gradients == {"swiglu_backward": 1, "swiglu_forward": 1}


def test_the_default_takes_the_kernel_on_cuda_only():
    traced = jax.jit(linear_swiglu).trace(*arguments_of((2, 40), 16, 16)[:2])
    name = 'name = "linear_swiglu"'
    assert name in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert name not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        (((4,), 16, 16), "float32", "must be bfloat16"),
        (((4,), 24, 16), "bfloat16", "multiples of 16"),
        (((4,), 16, 24), "bfloat16", "multiples of 16"),
        (((0,), 16, 16), "bfloat16", "no rows"),
    ],
)
def test_what_the_kernel_does_not_serve_falls_through(shape, dtype, reason):
    x, kernel, _ = make(*shape, dtype)
    with pytest.raises(NotImplementedError, match=reason):
        linear_swiglu(x, kernel, implementation=NAME)
    assert linear_swiglu(x, kernel).shape == (*shape[0], shape[2])


@pytest.mark.parametrize(
    ("x", "kernel", "error", "told"),
    [
        (np.ones((2, 3), np.float32), np.ones((4, 6), np.float32), ValueError, "D = 3"),
        (np.ones((2, 3), np.float32), np.ones((3,), np.float32), ValueError, r"\[D, 2I\]"),
        (np.ones((2, 3), np.float32), np.ones((3, 5), np.float32), ValueError, "even number"),
        (np.ones((2, 0), np.float32), np.ones((0, 2), np.float32), ValueError, "one feature"),
        (np.ones((2, 3), np.float32), np.ones((3, 6), np.float16), TypeError, "type of x"),
        (np.ones((2, 3), np.int32), np.ones((3, 6), np.float32), TypeError, "x must be one of"),
        (np.ones((2, 3), np.float32), [[1.0, 2.0]], TypeError, "got list"),
    ],
)
def test_errors(unchecked, x, kernel, error, told):
    with pytest.raises(error, match=told):
        linear_swiglu(x, kernel)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape",
    [
        ((16, 196), 192, 512),
        ((16, 196), 384, 1024),
        ((4, 196), 768, 2048),
        ((4, 56, 56), 96, 256),
        ((1001,), 96, 352),
        ((3, 49), 1024, 2752),
        ((77,), 48, 80),
        ((1,), 16, 16),
    ],
    ids=str,
)
def test_on_a_gpu(shape):
    check(functools.partial(linear_swiglu, implementation=NAME), make(*shape, "bfloat16"))


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "tiling",
    [
        Config(rows=128, columns=128),
        Config(rows=256, columns=64),
        Config(rows=128, columns=64, depth=32, num_warps=4, num_stages=4),
        Config(rows=64, columns=32, depth=32, num_warps=4),
    ],
    ids=str,
)
def test_tilings_on_a_gpu(tiling):
    arrays = make((777,), 208, 336, "bfloat16")
    run = functools.partial(pallas_triton.run, spec_of(*arrays[:2]), config=tiling)
    check(run, arrays)
