"""SwiGLU's gate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import swiglu
from kernels_pallas.swiglu import IMPLEMENTATIONS
from kernels_pallas.swiglu.pallas_triton.config import Config, KernelConfig
from kernels_pallas.swiglu.pallas_triton.kernels import locate
from kernels_pallas.swiglu.spec import SwigluSpec
from kernels_pallas.testing import interpret
from kernels_pallas.testing.op_test import OpTest, on_gpu, with_gradients

NAME = "pallas_triton"


class TestSwiglu(OpTest):
    op = "swiglu"
    forward_launches = ("swiglu_forward",)
    gradient_launches = ("swiglu_forward", "swiglu_backward")
    remat_launches = ("swiglu_forward", "swiglu_backward")

    def formula(self, case, x):
        gate, up = np.split(x, 2, axis=-1)
        return gate / (1 + np.exp(-gate)) * up

    def test_several_blocks(self):
        """More blocks than one, ragged at the end, in kernels with another config."""
        kernel = KernelConfig(block=64, num_warps=1)
        case = self.cases(model=False)[0]
        config = Config(kernel, kernel)
        with interpret():
            self.check(case, case.bind(swiglu, implementation=NAME, config=config))


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS])
def test_strong_gates_saturate(implementation):
    gates = jnp.array([-1e30, -200.0, -89.0, 0.0, 89.0, 200.0, 1e30])
    x = jnp.concatenate([gates, jnp.ones(7)])[None]
    run = with_gradients(functools.partial(swiglu, implementation=implementation))
    with interpret():
        out, (grad_x,) = jax.jit(run)((x,), jnp.ones((1, 7)))
    np.testing.assert_allclose(out[0], np.maximum(gates, 0), rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(grad_x[0, :7], [0, 0, 0, 0.5, 1, 1, 1], rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(grad_x[0, 7:], np.maximum(gates, 0), rtol=1e-6, atol=1e-30)


def test_rows_beyond_32_bits_are_located():
    """Rows and columns are exact where the flat numbers of outputs would not fit in 32 bits."""
    spec = SwigluSpec(rows=2**23 + 1, width=352, dtype=jnp.dtype(jnp.bfloat16))
    block = KernelConfig().block
    last = -(-spec.rows * spec.width // block) - 1
    rows, columns, mask = locate(spec, block, jnp.int32(last))
    outputs = last * block + np.arange(block)
    np.testing.assert_array_equal(rows, outputs // spec.width)
    np.testing.assert_array_equal(columns, outputs % spec.width)
    np.testing.assert_array_equal(mask, outputs < spec.rows * spec.width)


@pytest.mark.parametrize(("shape", "dtype"), [((2, 4), "float16"), ((0, 4), "bfloat16")])
def test_calls_without_a_kernel_fall_through(shape, dtype):
    x = jnp.ones(shape, dtype)
    with pytest.raises(NotImplementedError, match="cannot run this call"):
        swiglu(x, implementation=NAME)
    assert swiglu(x).shape == (*shape[:-1], shape[-1] // 2)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (np.ones((2, 3), np.float32), ValueError, "even size"),
        (np.ones((2, 0), np.float32), ValueError, "at least 2"),
        (np.float32([1])[0:1].reshape(()), ValueError, "last axis"),
        (np.ones((2, 4), np.int32), TypeError, "got int32"),
        ([1.0, 2.0], TypeError, "got list"),
    ],
)
def test_errors(unchecked, x, error, message):
    with pytest.raises(error, match=message):
        swiglu(x)


@on_gpu
@pytest.mark.gpu
def test_on_a_gpu_beyond_32_bits():
    """Over 2**32 elements: the last rows, the only ones that are not zero, are found and served."""
    normal = np.random.default_rng(0).standard_normal
    rows = jnp.asarray(normal((5, 2048)), "bfloat16"), jnp.asarray(normal((5, 1024)), "bfloat16")

    def last_of_many(rows):
        return jnp.zeros((2**21 + 3, rows.shape[1]), rows.dtype).at[-5:].set(rows)

    both = with_gradients(functools.partial(swiglu, implementation=NAME))
    run = jax.jit(lambda x, cotangent: jax.tree.leaves(both((x,), cotangent)))
    whole = run(*map(jax.jit(last_of_many), rows))
    for mine, expected in zip(whole, run(*rows), strict=True):
        np.testing.assert_array_equal(mine[-5:], expected)
        assert not mine[:-5].any()
