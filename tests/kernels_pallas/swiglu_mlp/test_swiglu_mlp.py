"""The SwiGLU MLP: implementations against float64, what the backward pass keeps and launches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import swiglu, swiglu_mlp
from kernels_pallas.swiglu.pallas_triton.config import KernelConfig
from kernels_pallas.swiglu.pallas_triton.kernels import backward_and_output
from kernels_pallas.swiglu_mlp.spec import SwigluMlpSpec
from kernels_pallas.testing import TOLERANCES, interpret, launches, rms_relative_error

NAME = "pallas_triton"
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU")


def make(rows, features, width, outputs, dtype):
    """x [*rows, D], kernel [D, 2I], down_kernel [I, O] and a cotangent [*rows, O]."""
    normal = np.random.default_rng(width).standard_normal
    kernel = 2 * features**-0.5 * normal((features, 2 * width))
    down_kernel = width**-0.5 * normal((width, outputs))
    arrays = normal((*rows, features)), kernel, down_kernel, normal((*rows, outputs))
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def spec_of(x, kernel, down_kernel):
    width, outputs = down_kernel.shape
    return SwigluMlpSpec(x[..., 0].size, x.shape[-1], width, outputs, x.dtype)


def with_gradients(run):
    def call(*arrays):
        out, pullback = jax.vjp(run, *arrays[:3])
        return out, *pullback(arrays[3])

    return jax.jit(call)


def expected_from(*arrays):
    """Output and gradients by the formulas, in numpy's float64."""
    x, kernel, down_kernel, grad_out = (np.asarray(array, np.float64) for array in arrays)
    gate, y = np.split(x @ kernel, 2, axis=-1)
    sigmoid = 1 / (1 + np.exp(-gate))
    hidden = gate * sigmoid * y
    grad_hidden = grad_out @ down_kernel.T
    grad_gate = grad_hidden * y * sigmoid * (1 + gate * (1 - sigmoid))
    grad = np.concatenate([grad_gate, grad_hidden * gate * sigmoid], axis=-1)
    x, flat, hidden, grad_out = (
        array.reshape(-1, array.shape[-1]) for array in (x, grad, hidden, grad_out)
    )
    out = (hidden @ down_kernel).reshape(arrays[3].shape)
    return out, grad @ kernel.T, x.T @ flat, hidden.T @ grad_out


def check(run, arrays):
    """Checks the output alone, and with the gradients: they are computed in different ways."""
    tolerance = TOLERANCES[arrays[0].dtype.name]
    expected = expected_from(*arrays)
    actual = (jax.jit(run)(*arrays[:3]), *with_gradients(run)(*arrays))
    allowed = (tolerance.forward,) * 2 + (tolerance.gradient,) * 3
    for mine, right, limit in zip(actual, (expected[0], *expected), allowed, strict=True):
        assert mine.dtype == arrays[0].dtype
        assert rms_relative_error(mine, right) <= limit


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["reference", "xla"])
@pytest.mark.parametrize("shape", [((2, 3), 12, 10, 7), ((5,), 3, 5, 2), ((), 7, 3, 9)], ids=str)
def test_formula(name, shape, dtype):
    with jax.enable_x64(dtype == "float64"):
        check(functools.partial(swiglu_mlp, implementation=name), make(*shape, dtype))


@pytest.mark.parametrize(
    "shape",
    [((2, 35), 32, 48, 32), ((7,), 16, 80, 5), ((1,), 48, 16, 64), ((), 16, 16, 1)],
    ids=str,
)
def test_interpreted_kernels(shape):
    arrays = make(*shape, "bfloat16")
    with interpret():
        check(functools.partial(swiglu_mlp, implementation=NAME), arrays)


def test_interpreted_with_weights_outside_of_vmap():
    """Gradients of the weights for each index of the mapped axis."""
    x, *weights, grad_out = make((2, 3), 16, 32, 5, "bfloat16")
    run = with_gradients(functools.partial(swiglu_mlp, implementation=NAME))
    with interpret():
        actual = jax.jit(jax.vmap(run, in_axes=(0, None, None, 0)))(x, *weights, grad_out)
    for i in range(2):
        for mine, right in zip(actual, expected_from(x[i], *weights, grad_out[i]), strict=True):
            assert rms_relative_error(mine[i], right) <= TOLERANCES["bfloat16"].gradient


def test_the_gate_is_written_again_as_it_was():
    """The second linear map's gradient belongs to the very values that it was applied to."""
    x, *weights, grad_out = make((37,), 16, 48, 16, "bfloat16")
    spec = spec_of(x, *weights).swiglu
    product = x @ weights[0]
    with interpret():
        hidden, pullback = jax.vjp(functools.partial(swiglu, implementation=NAME), product)
        grad_hidden = grad_out @ weights[1].T
        [expected] = pullback(grad_hidden)
        grad_product, again = backward_and_output(spec, KernelConfig(), product, grad_hidden)
    np.testing.assert_array_equal(again, hidden)
    np.testing.assert_array_equal(grad_product, expected)


def test_the_default():
    check(swiglu_mlp, make((6,), 16, 32, 16, "bfloat16"))


def arguments_of(rows, features, width, outputs, dtype="bfloat16"):
    shapes = (*rows, features), (features, 2 * width), (width, outputs), (*rows, outputs)
    return tuple(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)


def test_one_array_of_inner_width_is_kept():
    arguments = arguments_of((2, 24), 16, 96, 32)
    run = functools.partial(swiglu_mlp, implementation=NAME)
    kept = jax.eval_shape(lambda *arrays: jax.vjp(run, *arrays)[1], *arguments[:3])
    sizes = sorted(array.size for array in jax.tree.leaves(kept))
    x, kernel, down_kernel = (array.size for array in arguments[:3])
    assert sizes == sorted([x, 2 * 24 * 2 * 96, kernel, down_kernel])


def lowered(run, *arguments):
    return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


VIG_SHAPES = [
    *(((256, 14, 14), *widths) for widths in ((192, 512), (384, 1024), (768, 2048))),
    ((256, 56, 56), 96, 256),
    ((256, 7, 7), 768, 2048),
    ((256, 56, 56), 128, 352),
    ((256, 7, 7), 1024, 2752),
]


@pytest.mark.parametrize("shape", VIG_SHAPES, ids=str)
def test_lowers_for_cuda(shape):
    arguments = arguments_of(*shape, shape[1])
    run = functools.partial(swiglu_mlp, implementation=NAME)
    assert len(lowered(with_gradients(run), *arguments)) > 0
    assert len(lowered(run, *arguments[:3])) > 0


def test_the_product_stays_inside_unless_a_derivative_needs_it():
    arguments = arguments_of((2, 196), 192, 512, 192)
    run = functools.partial(swiglu_mlp, implementation=NAME)
    assert launches(run, *arguments[:3]) == {"linear_swiglu": 1}
    gradients = launches(with_gradients(run), *arguments)
    assert gradients == {"swiglu_backward_and_output": 1, "swiglu_forward": 1}


def test_the_default_takes_the_kernels_on_cuda_only():
    traced = jax.jit(swiglu_mlp).trace(*arguments_of((2, 40), 16, 16, 16)[:3])
    name = 'name = "linear_swiglu"'
    assert name in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert name not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        (((4,), 16, 16, 16), "float32", "must be bfloat16"),
        (((4,), 24, 16, 16), "bfloat16", "multiples of 16"),
        (((4,), 16, 24, 16), "bfloat16", "multiples of 16"),
        (((0,), 16, 16, 16), "bfloat16", "no rows"),
    ],
)
def test_what_the_kernels_do_not_serve_falls_through(shape, dtype, reason):
    *arrays, grad_out = make(*shape, dtype)
    with pytest.raises(NotImplementedError, match=reason):
        swiglu_mlp(*arrays, implementation=NAME)
    assert swiglu_mlp(*arrays).shape == grad_out.shape


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    ("arrays", "error", "told"),
    [
        ((ones(2, 3), ones(4, 6), ones(3, 2)), ValueError, "D = 3"),
        ((ones(2, 3), ones(3), ones(3, 2)), ValueError, r"\[D, 2I\]"),
        ((ones(2, 3), ones(3, 5), ones(3, 2)), ValueError, "even number"),
        ((ones(2, 3), ones(3, 6), ones(6, 2)), ValueError, "I = 3"),
        ((ones(2, 3), ones(3, 6), ones(3)), ValueError, r"\[I, outputs\]"),
        ((ones(2, 3), ones(3, 6), ones(3, 0)), ValueError, r"\[I, outputs\]"),
        ((ones(2, 0), ones(0, 6), ones(3, 2)), ValueError, "one feature"),
        ((ones(2, 3), ones(3, 6), ones(3, 2, dtype="float16")), TypeError, "down_kernel must have"),
        ((ones(2, 3), ones(3, 6, dtype="float16"), ones(3, 2)), TypeError, "kernel must have"),
        ((ones(2, 3, dtype="int32"), ones(3, 6), ones(3, 2)), TypeError, "x must be one of"),
        ((ones(2, 3), ones(3, 6), [[1.0, 2.0]]), TypeError, "got list"),
    ],
)
def test_errors(unchecked, arrays, error, told):
    with pytest.raises(error, match=told):
        swiglu_mlp(*arrays)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "shape",
    [
        ((16, 196), 192, 512, 192),
        ((16, 196), 384, 1024, 384),
        ((4, 196), 768, 2048, 768),
        ((4, 56, 56), 96, 256, 96),
        ((1001,), 96, 352, 33),
        ((3, 49), 1024, 2752, 1024),
        ((77,), 48, 80, 16),
        ((1,), 16, 16, 1),
    ],
    ids=str,
)
def test_on_a_gpu(shape):
    check(functools.partial(swiglu_mlp, implementation=NAME), make(*shape, "bfloat16"))


@on_gpu
@pytest.mark.gpu
def test_what_is_kept_can_be_used_again():
    """The kernel of the backward pass writes where its inputs are: not into those kept for long."""
    *arrays, grad_out = make((16, 196), 192, 512, 192, "bfloat16")
    _, pullback = jax.vjp(functools.partial(swiglu_mlp, implementation=NAME), *arrays)
    for first, second in zip(pullback(grad_out), pullback(grad_out), strict=True):
        np.testing.assert_array_equal(first, second)
