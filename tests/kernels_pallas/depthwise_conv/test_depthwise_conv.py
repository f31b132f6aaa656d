"""Depthwise convolution."""

import dataclasses
import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from kernels_pallas.core.arg_specs import MODEL
from kernels_pallas.depthwise_conv import depthwise_conv, xla
from kernels_pallas.depthwise_conv.arg_specs import CASES
from kernels_pallas.depthwise_conv.pallas_triton.config import Config, KernelConfig, heuristic
from kernels_pallas.depthwise_conv.spec import DepthwiseConvSpec
from kernels_pallas.testing import interpret
from kernels_pallas.testing.op_test import OpTest, on_gpu, with_gradients

NAME = "pallas_triton"


class TestDepthwiseConv(OpTest):
    op = "depthwise_conv"
    forward_launches = ("depthwise_conv_forward",)
    gradient_launches = ("depthwise_conv_forward", "depthwise_conv_gradient")
    remat_launches = ("depthwise_conv_forward", "depthwise_conv_gradient")

    def formula(self, case, x, kernel):
        """Adds the products of each pixel's neighbours."""
        _, height, width, _ = x.shape
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        sums = np.zeros_like(x)
        for row, column in np.ndindex(height, width):
            window = padded[:, row : row + 3, column : column + 3]
            sums[:, row, column] = (window * kernel[:, :, 0]).sum((1, 2))
        return sums / (1 + np.exp(-sums)) if case.kwargs["activation"] else sums

    @pytest.mark.parametrize("name", ["shared_tiles", "whole_tiles"])
    def test_grouped_convolution(self, name):
        """The form that XLA runs outside of CPUs."""
        case = next(case for case in CASES if case.name == name)
        spec = DepthwiseConvSpec(*case.args["x"].shape, case.dtype, case.kwargs["activation"])
        self.check(case, functools.partial(xla.grouped_conv, spec))

    @pytest.mark.parametrize(
        "config",
        [
            KernelConfig(channels=16, vector=2, num_warps=1, rows=3, ahead=0, strips=2),
            KernelConfig(channels=8, vector=4, num_warps=2, rows=2, ahead=3, strips=1),
        ],
        ids=str,
    )
    def test_configs(self, config):
        """Several bands, strips and blocks of channels, ragged ones among them."""
        case = next(case for case in CASES if case.name == "shared_tiles")
        config = Config(dataclasses.replace(config, strips=0), config)
        with interpret():
            self.check(case, case.bind(depthwise_conv, implementation=NAME, config=config))

    def test_launches_with_activation(self):
        case = next(case for case in CASES if case.kwargs["activation"])
        with_activation = TestDepthwiseConv()
        with_activation.cases = lambda *, model: [case]
        gradient = "depthwise_conv_activation_gradient"
        with_activation.gradient_launches = (*self.gradient_launches, gradient)
        with_activation.remat_launches = (*self.remat_launches, gradient)
        with_activation.test_launches()


def check_that_nothing_leaks():
    """Makes one channel of one image NaN: this shows nowhere else, not even in its neighbours."""
    normal = np.random.default_rng(0).standard_normal
    x, cotangent = (jnp.asarray(normal((3, 5, 4, 7)), "bfloat16") for _ in range(2))
    kernel = jnp.asarray(normal((3, 3, 1, 7)), "bfloat16")
    run = functools.partial(depthwise_conv, activation="silu", implementation=NAME)
    run = jax.jit(with_gradients(run))
    expected = jax.tree.leaves(run((x, kernel), cotangent))
    actual = jax.tree.leaves(run((x.at[1, :, :, 2].set(jnp.nan), kernel), cotangent))
    elsewhere = np.ones(x.shape, bool)
    elsewhere[1, :, :, 2] = False
    for mine, other in zip(actual[:2], expected[:2], strict=True):
        np.testing.assert_array_equal(mine[elsewhere], other[elsewhere])
        assert np.isnan(np.asarray(mine, np.float32)[~elsewhere]).all()
    others = np.arange(7) != 2
    np.testing.assert_array_equal(actual[2][..., others], expected[2][..., others])


def test_interpreted_nothing_leaks():
    with interpret():
        check_that_nothing_leaks()


@on_gpu
@pytest.mark.gpu
def test_nothing_leaks_on_a_gpu():
    check_that_nothing_leaks()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_heuristic_covers_every_map(case):
    batch, height, width, channels = case.args["x"].shape
    spec = DepthwiseConvSpec(batch, height, width, channels, case.dtype)
    config = heuristic(spec)
    for kernel in (config.forward, config.backward):
        assert (kernel.bands(spec) - 1) * kernel.rows < height <= kernel.bands(spec) * kernel.rows
        assert kernel.tiles(spec) * kernel.columns >= batch * width
        assert kernel.channel_blocks(spec) * kernel.channels >= channels
        assert kernel.strips <= kernel.tiles(spec)
    assert MODEL not in case.tags or config.forward.programs(spec) >= 640


def test_an_empty_batch():
    assert depthwise_conv(jnp.ones((0, 3, 3, 4)), jnp.ones((3, 3, 1, 4))).shape == (0, 3, 3, 4)


# Without the tests' shape checker, which would raise first.
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
def test_errors(change, error, message):
    arguments = {"x": np.zeros((1, 3, 3, 4), "f4"), "kernel": np.zeros((3, 3, 1, 4), "f4")} | change
    with pytest.raises(error, match=message):
        bare(**arguments)


def test_calls_without_a_kernel_fall_through():
    x, kernel = jnp.ones((1, 3, 3, 4), "float16"), jnp.ones((3, 3, 1, 4), "float16")
    with pytest.raises(NotImplementedError, match="bfloat16 or float32, got float16"):
        depthwise_conv(x, kernel, implementation=NAME)
    assert depthwise_conv(x, kernel).dtype == jnp.float16
