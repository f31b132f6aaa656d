"""SwiGLU's gate: every implementation against the definition in float64, and its CUDA kernels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import swiglu
from kernels_pallas.swiglu import IMPLEMENTATIONS, pallas_triton
from kernels_pallas.swiglu.pallas_triton.config import Config, KernelConfig
from kernels_pallas.swiglu.pallas_triton.kernels import locate
from kernels_pallas.swiglu.spec import SwigluSpec
from kernels_pallas.testing import TOLERANCES, interpret, launches, rms_relative_error

NAME = "pallas_triton"
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU")


def make(shape, dtype, scale=2.0):
    """x [..., 2I] and a cotangent [..., I]; gates up to several times `scale` either side of 0."""
    generator = np.random.default_rng(shape[-1])
    x = scale * generator.standard_normal((*shape[:-1], 2 * shape[-1]))
    return jnp.asarray(x, dtype), jnp.asarray(generator.standard_normal(shape), dtype)


def spec_of(x):
    return SwigluSpec(x[..., 0].size, x.shape[-1] // 2, x.dtype)


def with_gradient(run):
    def call(x, grad_out):
        out, pullback = jax.vjp(run, x)
        return out, *pullback(grad_out)

    return jax.jit(call)


def expected_from(x, grad_out):
    """Output and gradient by the formulas, in numpy's float64."""
    gate, y = np.split(np.asarray(x, np.float64), 2, axis=-1)
    grad_out = np.asarray(grad_out, np.float64)
    sigmoid = 1 / (1 + np.exp(-gate))
    grad_gate = grad_out * y * sigmoid * (1 + gate * (1 - sigmoid))
    grad_x = np.concatenate([grad_gate, grad_out * gate * sigmoid], axis=-1)
    return gate * sigmoid * y, grad_x


def check(run, x, grad_out):
    tolerance = TOLERANCES[x.dtype.name]
    actual = with_gradient(run)(x, grad_out)
    expected = expected_from(x, grad_out)
    assert all(mine.dtype == x.dtype for mine in actual)
    assert rms_relative_error(actual[0], expected[0]) <= tolerance.forward
    assert rms_relative_error(actual[1], expected[1]) <= tolerance.gradient


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["reference", "xla"])
@pytest.mark.parametrize("shape", [(2, 3, 20), (7, 1), (5,), (0, 4)], ids=str)
def test_formula(name, shape, dtype):
    with jax.enable_x64(dtype == "float64"):
        run = functools.partial(swiglu, implementation=name)
        x, grad_out = make(shape, dtype)
        if x.size:
            check(run, x, grad_out)
        else:
            assert run(x).shape == shape


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [(4, 64), (3, 5, 32), (5, 352), (33, 7), (6, 1), (96,), (1, 1)],
    ids=str,
)
def test_interpreted_kernels(shape, dtype):
    x, grad_out = make(shape, dtype)
    config = KernelConfig(block=64, num_warps=1)
    run = functools.partial(pallas_triton.run, spec_of(x), config=Config(config, config))
    with interpret():
        check(run, x, grad_out)


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS])
def test_strong_gates_saturate(implementation):
    gates = jnp.array([-1e30, -200.0, -89.0, 0.0, 89.0, 200.0, 1e30])
    x = jnp.concatenate([gates, jnp.ones(7)])[None]
    grad_out = jnp.ones((1, 7))
    with interpret():
        out, grad_x = with_gradient(functools.partial(swiglu, implementation=implementation))(
            x, grad_out
        )
    np.testing.assert_allclose(out[0], np.maximum(gates, 0), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(grad_x[0, :7], [0, 0, 0, 0.5, 1, 1, 1], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(grad_x[0, 7:], np.maximum(gates, 0), rtol=1e-6, atol=1e-30)


def test_rows_beyond_32_bits_are_placed():
    """The place of a program is exact where its outputs' flat numbers would not fit in 32 bits."""
    spec = SwigluSpec(rows=2**23 + 1, width=352, dtype=jnp.dtype(jnp.bfloat16))
    block = KernelConfig().block
    last = -(-spec.rows * spec.width // block) - 1
    rows, columns, mask = locate(spec, block, jnp.int32(last))
    outputs = last * block + np.arange(block)
    np.testing.assert_array_equal(rows, outputs // spec.width)
    np.testing.assert_array_equal(columns, outputs % spec.width)
    np.testing.assert_array_equal(mask, outputs < spec.rows * spec.width)


def test_the_default():
    x, grad_out = make((3, 32), "float32")
    check(swiglu, x, grad_out)


def lowered(run, *arguments):
    return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def arguments_of(shape, dtype="bfloat16"):
    x = jax.ShapeDtypeStruct((*shape[:-1], 2 * shape[-1]), dtype)
    return x, jax.ShapeDtypeStruct(shape, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [(256, 196, 512), (256, 196, 1024), (256, 196, 2048), (256, 56, 56, 256), (3, 7, 2752), (5, 1)],
    ids=str,
)
def test_lowers_for_cuda(shape, dtype):
    run = with_gradient(functools.partial(swiglu, implementation=NAME))
    assert len(lowered(run, *arguments_of(shape, dtype))) > 0


def test_a_forward_pass_launches_no_kernel_for_gradients():
    x, grad_out = arguments_of((2, 196, 512))
    run = functools.partial(swiglu, implementation=NAME)
    assert launches(run, x) == {"swiglu_forward": 1}
    gradient = with_gradient(run)
    assert launches(gradient, x, grad_out) == {"swiglu_backward": 1, "swiglu_forward": 1}


def test_the_default_takes_the_kernels_on_cuda_only():
    traced = jax.jit(swiglu).trace(arguments_of((2, 40, 16))[0])
    assert "swiglu_forward" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "swiglu_forward" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize(("shape", "dtype"), [((2, 4), "float16"), ((0, 4), "bfloat16")])
def test_what_the_kernels_do_not_serve_falls_through(shape, dtype):
    x = jnp.ones(shape, dtype)
    with pytest.raises(NotImplementedError, match="cannot run this call"):
        swiglu(x, implementation=NAME)
    assert swiglu(x).shape == (*shape[:-1], shape[-1] // 2)


@pytest.mark.parametrize(
    ("x", "error", "told"),
    [
        (np.ones((2, 3), np.float32), ValueError, "even size"),
        (np.ones((2, 0), np.float32), ValueError, "at least 2"),
        (np.float32([1])[0:1].reshape(()), ValueError, "last axis"),
        (np.ones((2, 4), np.int32), TypeError, "got int32"),
        ([1.0, 2.0], TypeError, "got list"),
    ],
)
def test_errors(unchecked, x, error, told):
    with pytest.raises(error, match=told):
        swiglu(x)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "shape",
    [
        (256, 196, 512),
        (64, 196, 2048),
        (16, 56, 56, 256),
        (3, 49, 2752),
        (1001, 352),
        (333, 77),
        (5, 1),
    ],
    ids=str,
)
def test_on_a_gpu(shape, dtype):
    x, grad_out = make(shape, dtype)
    check(functools.partial(swiglu, implementation=NAME), x, grad_out)


@on_gpu
@pytest.mark.gpu
def test_on_a_gpu_beyond_32_bits():
    """Over 2**32 elements: the last rows, the only ones that are not zero, are found and served."""
    few = make((5, 1024), "bfloat16")

    def last_of_many(rows):
        return jnp.zeros((2**21 + 3, rows.shape[1]), rows.dtype).at[-5:].set(rows)

    run = with_gradient(functools.partial(swiglu, implementation=NAME))
    whole = run(*map(jax.jit(last_of_many), few))
    for mine, expected in zip(whole, run(*few), strict=True):
        np.testing.assert_array_equal(mine[-5:], expected)
        assert not mine[:-5].any()
