"""The SwiGLU MLP."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import swiglu, swiglu_mlp
from kernels_pallas.swiglu.pallas_triton.config import KernelConfig
from kernels_pallas.swiglu.pallas_triton.kernels import backward_and_output
from kernels_pallas.swiglu.spec import SwigluSpec
from kernels_pallas.testing import interpret
from kernels_pallas.testing.op_test import OpTest, on_gpu, with_mosaic

NAME = "pallas_triton"


class TestSwigluMlp(OpTest):
    op = "swiglu_mlp"
    forward_launches = ("linear_swiglu",)
    gradient_launches = ("swiglu_forward", "swiglu_backward_and_output")
    remat_launches = ("linear_swiglu", "swiglu_backward_and_output")

    def formula(self, case, x, kernel, down_kernel):
        gate, up = np.split(x @ kernel, 2, axis=-1)
        return (gate / (1 + np.exp(-gate)) * up) @ down_kernel

    def test_one_array_of_inner_width_is_kept(self):
        case = self.cases(model=False)[0]
        run = case.bind(swiglu_mlp, implementation=NAME)
        arrays = tuple(case.args.values())
        kept = jax.eval_shape(lambda *arrays: jax.vjp(run, *arrays)[1], *arrays)
        sizes = sorted(array.size for array in jax.tree.leaves(kept))
        x, kernel, down_kernel = arrays
        product = x.shape[0] * x.shape[1] * kernel.shape[1]
        assert sizes == sorted([x.size, product, kernel.size, down_kernel.size])

    @on_gpu
    @pytest.mark.gpu
    def test_residuals_can_be_used_again(self):
        """The backward kernel writes where its inputs are, but not into those that are kept."""
        case = self.cases(model=True)[0].with_batch(16)
        (arrays, cotangent) = self.inputs(case)
        _, pullback = jax.vjp(functools.partial(swiglu_mlp, implementation=NAME), *arrays)
        for first, second in zip(pullback(cotangent), pullback(cotangent), strict=True):
            np.testing.assert_array_equal(first, second)


@with_mosaic
class TestSwigluMlpOnMosaic(TestSwigluMlp):
    """The kernel for Hopper GPUs; gradients come from another implementation."""

    backend = "pallas_mosaic_gpu"
    test_formula = test_portable = None
    test_one_array_of_inner_width_is_kept = test_residuals_can_be_used_again = None
    test_the_default_takes_the_kernels_on_cuda_only = None


def test_the_output_of_the_gate_is_recomputed_to_the_bit():
    """The second linear map's gradient belongs to the very values that it was applied to."""
    normal = np.random.default_rng(0).standard_normal
    product = jnp.asarray(normal((37, 96)), "bfloat16")
    grad_hidden = jnp.asarray(normal((37, 48)), "bfloat16")
    spec = SwigluSpec(37, 48, product.dtype)
    with interpret():
        hidden, pullback = jax.vjp(functools.partial(swiglu, implementation=NAME), product)
        [expected] = pullback(grad_hidden)
        grad_product, again = backward_and_output(spec, KernelConfig(), product, grad_hidden)
    np.testing.assert_array_equal(again, hidden)
    np.testing.assert_array_equal(grad_product, expected)


def ones(*shape, dtype="float32"):
    return np.ones(shape, dtype)


def narrow(*shape):
    return jnp.ones(shape, "bfloat16")


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (tuple(map(jnp.asarray, (ones(4, 16), ones(16, 32), ones(16, 16)))), "must be bfloat16"),
        ((narrow(4, 24), narrow(24, 32), narrow(16, 16)), "multiples of 16"),
        ((narrow(4, 16), narrow(16, 48), narrow(24, 16)), "multiples of 16"),
        ((narrow(0, 16), narrow(16, 32), narrow(16, 16)), "no rows"),
    ],
)
def test_calls_without_a_kernel_fall_through(arrays, reason):
    with pytest.raises(NotImplementedError, match=reason):
        swiglu_mlp(*arrays, implementation=NAME)
    assert swiglu_mlp(*arrays).shape == (arrays[0].shape[0], 16)


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
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
def test_errors(unchecked, arrays, error, message):
    with pytest.raises(error, match=message):
        swiglu_mlp(*arrays)
