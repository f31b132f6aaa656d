"""Normalisation, with an activation and after a residual sum."""

import inspect
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from kernels_pallas import norm_act, residual_norm
from kernels_pallas.norm.pallas_triton.config import Config, KernelConfig
from kernels_pallas.testing import interpret, rms_relative_error
from kernels_pallas.testing.op_test import OpTest


def draw(seed, *shape, dtype="float32"):
    values = np.random.default_rng(seed).standard_normal(shape)
    return jnp.asarray(values, dtype)


def definition(x, scale, bias, kind, epsilon):
    if kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    y = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale
    return y if bias is None else y + bias


class TestNormAct(OpTest):
    op = "norm_act"
    forward_launches = ("norm_forward",)
    gradient_launches = remat_launches = ("norm_forward", "norm_backward")

    def formula(self, case, x, scale, bias=None):
        y = definition(x, scale, bias, case.kwargs["kind"], case.kwargs["epsilon"])
        if case.kwargs["activation"] == "silu":
            y = y / (1 + np.exp(-y))
        if case.kwargs["activation"] == "gelu":
            y = y * (1 + np.vectorize(math.erf)(y / math.sqrt(2))) / 2
        return y


class TestResidualNorm(OpTest):
    op = "residual_norm"
    forward_launches = ("norm_forward",)
    gradient_launches = ("norm_forward", "norm_backward")
    # The backward pass normalises the sum, which the second forward pass recomputes.
    remat_launches = ("norm_forward", "norm_forward", "norm_backward")

    def formula(self, case, x, branch, scale, bias=None, keep=None):
        if isinstance(bias, np.ndarray) and "bias" not in case.args:
            bias, keep = None, bias
        if keep is not None:
            branch = branch * keep.reshape(-1, *(1,) * (x.ndim - 1))
        total = x + branch
        return total, definition(total, scale, bias, case.kwargs["kind"], case.kwargs["epsilon"])

    def test_config(self):
        """Several steps per program, ragged rows and ragged parts."""
        case = self.cases(model=False)[0]
        kernel = KernelConfig(rows=2, columns=16, num_warps=1, max_programs=3)
        config = Config(kernel, kernel)
        with interpret():
            self.check(
                case, case.bind(residual_norm, implementation="pallas_triton", config=config)
            )


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_statistics_are_those_of_the_rounded_sum(implementation):
    x, branch = draw(0, 3, 5, 16, dtype="bfloat16"), draw(1, 3, 5, 16, dtype="bfloat16")
    options = {"kind": "rms", "epsilon": 1e-6, "implementation": implementation}
    total, y = residual_norm(x, branch, draw(2, 16), **options)
    np.testing.assert_array_equal(y, norm_act(total, draw(2, 16), **options))


def test_as_flax():
    x, scale, bias = 1 + draw(0, 4, 9, 24), draw(1, 24), draw(2, 24)
    layer = nn.LayerNorm(epsilon=1e-5, use_fast_variance=False)
    expected = layer.apply({"params": {"scale": scale, "bias": bias}}, x)
    y = norm_act(x, scale, bias, kind="layer", epsilon=1e-5)
    assert rms_relative_error(y, expected) <= 1e-6


@pytest.mark.parametrize("implementation", ["xla", "pallas_triton"])
def test_a_dropped_branch_may_be_nan(implementation):
    x, scale = draw(0, 2, 3, 8), draw(1, 8)
    branch = jnp.asarray(draw(2, 2, 3, 8)).at[0].set(jnp.nan)
    options = {"kind": "rms", "epsilon": 1e-6, "keep": jnp.asarray([0.0, 2.0])}
    with interpret():
        total, y = residual_norm(x, branch, scale, implementation=implementation, **options)
    np.testing.assert_array_equal(total[0], x[0])
    assert np.isfinite(y).all()


def test_no_gradient_for_keep():
    x, scale, keep = draw(0, 2, 3, 8), draw(1, 8), jnp.ones(2)

    def loss(x, keep):
        total, y = residual_norm(x, x, scale, kind="rms", epsilon=1e-6, keep=keep)
        return jnp.sum(total**2) + jnp.sum(jnp.sin(y))

    grad_x, grad_keep = jax.grad(loss, argnums=(0, 1))(x, keep)
    np.testing.assert_array_equal(grad_keep, [0, 0])
    assert np.all(np.abs(grad_x) > 0)


def test_empty_maps():
    y = norm_act(jnp.zeros((0, 4)), jnp.ones(4), kind="layer", epsilon=1e-5)
    assert y.shape == (0, 4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1.0]}, TypeError, "x must be a JAX or numpy array, got list"),
        ({"x": jnp.ones((2, 4), int)}, TypeError, "x must be one of float32, .* got int32"),
        ({"x": jnp.ones(())}, ValueError, "at least one channel in its last axis"),
        ({"x": jnp.ones((2, 0))}, ValueError, "at least one channel in its last axis"),
        ({"scale": jnp.ones(5)}, ValueError, r"scale must .* \(4,\), got \(5,\)"),
        ({"bias": jnp.ones((1, 4))}, ValueError, r"bias must .* \(4,\), got \(1, 4\)"),
        ({"kind": "batch"}, ValueError, r"kind must be one of \('rms', 'layer'\), got 'batch'"),
        ({"activation": "relu"}, ValueError, "activation must be one of .* got 'relu'"),
        ({"epsilon": jnp.ones(())}, TypeError, "epsilon must be a Python number"),
        ({"epsilon": 0.0}, ValueError, "epsilon must be positive, got 0"),
        ({"implementation": "xlaa"}, ValueError, "did you mean 'xla'"),
        ({"implementation": "pallas_triton", "x": jnp.ones((2, 4), "float16")},
         NotImplementedError, "must be bfloat16 or float32, got float16"),
        ({"implementation": "pallas_triton", "x": jnp.ones((0, 4))},
         NotImplementedError, "nothing to launch"),
    ],
)  # fmt: skip
def test_refused(change, error, message):
    arguments = {"x": jnp.ones((2, 4)), "scale": jnp.ones(4), "kind": "rms", "epsilon": 1e-6}
    with pytest.raises(error, match=message):
        inspect.unwrap(kernels_pallas.norm_act)(**arguments | change)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"branch": jnp.ones((2, 4))}, ValueError, r"branch must have the shape of x, \(2, 3, 4\)"),
        ({"branch": jnp.ones((2, 3, 4), "bfloat16")}, TypeError, "branch must have the type of x"),
        ({"keep": jnp.ones(3)}, ValueError, r"keep must have one number .* got shape \(3,\)"),
        ({"keep": jnp.ones((2, 1, 1))}, ValueError, "keep must have one number"),
    ],
)
def test_refused_sums(change, error, message):
    ones = jnp.ones((2, 3, 4))
    arguments = {"x": ones, "branch": ones, "scale": jnp.ones(4), "kind": "rms", "epsilon": 1e-6}
    with pytest.raises(error, match=message):
        inspect.unwrap(kernels_pallas.residual_norm)(**arguments | change)
