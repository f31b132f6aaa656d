"""A linear map with SwiGLU's gate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import linear_swiglu
from kernels_pallas.core import mosaic
from kernels_pallas.core.device import Device
from kernels_pallas.linear_swiglu import pallas_mosaic_gpu
from kernels_pallas.linear_swiglu.pallas_mosaic_gpu.config import Config as MosaicConfig
from kernels_pallas.linear_swiglu.pallas_triton.config import Config
from kernels_pallas.linear_swiglu.spec import LinearSwigluSpec
from kernels_pallas.testing import TOLERANCES, interpret
from kernels_pallas.testing.op_test import OpTest, on_gpu, with_mosaic

NAME = "pallas_triton"


class TestLinearSwiglu(OpTest):
    """The product stays inside of the kernel unless a derivative needs it."""

    op = "linear_swiglu"
    forward_launches = ("linear_swiglu",)
    gradient_launches = ("swiglu_forward", "swiglu_backward")
    remat_launches = ("linear_swiglu", "swiglu_backward")

    def formula(self, case, x, kernel):
        gate, up = np.split(x @ kernel, 2, axis=-1)
        return gate / (1 + np.exp(-gate)) * up

    def test_several_tiles(self):
        """Several steps and tiles along each axis, ragged at their ends."""
        case = next(case for case in self.cases(model=False) if case.name == "ragged")
        config = Config(rows=32, columns=32, depth=32)
        with interpret():
            self.check(case, case.bind(linear_swiglu, implementation=NAME, config=config))

    @on_gpu
    @pytest.mark.gpu
    @pytest.mark.parametrize(
        "config",
        [
            Config(rows=128, columns=128),
            Config(rows=256, columns=64),
            Config(rows=128, columns=64, depth=32, num_warps=4, num_stages=4),
            Config(rows=64, columns=32, depth=32, num_warps=4),
        ],
        ids=str,
    )
    def test_configs_on_a_gpu(self, config):
        case = next(case for case in self.cases(model=False) if case.name == "ragged")
        self.check(case, case.bind(linear_swiglu, implementation=NAME, config=config))


@with_mosaic
class TestLinearSwigluOnMosaic(TestLinearSwiglu):
    """The kernel for Hopper GPUs; gradients come from another implementation."""

    backend = "pallas_mosaic_gpu"
    test_formula = test_portable = None
    test_several_tiles = test_configs_on_a_gpu = None
    test_the_default_takes_the_kernels_on_cuda_only = None

    @pytest.mark.parametrize(
        "config",
        [MosaicConfig(64, 128, stages=2, keep_rows=True), MosaicConfig(stages=3, keep_rows=False)],
        ids=str,
    )
    def test_several_blocks_of_a_program(self, config, monkeypatch):
        """Two programs walk over more blocks, the last of which has rows past the end."""
        monkeypatch.setattr(mosaic, "MULTIPROCESSORS", 2)
        jax.clear_caches()  # another test may have traced the same call for more programs
        case = next(case for case in self.cases(model=False) if case.name == "tiles")
        arrays, _ = self.inputs(case)
        expected = case.bind(linear_swiglu, implementation="reference")(
            *(x.astype("float32") for x in arrays)
        )
        with interpret():
            run = case.bind(linear_swiglu, implementation=self.backend, config=config)
            out = jax.jit(run)(*arrays)
        self.compare([out], [expected], TOLERANCES["bfloat16"].forward, "output")

    @on_gpu
    @pytest.mark.gpu
    def test_candidates_on_a_gpu(self):
        """Compares all of them with the first one, bit by bit: the order of sums is the same."""
        case = self.served(self.cases(model=True))[1].with_batch(4)
        arrays, _ = self.inputs(case)
        call = self.call(case)
        outs = [
            case.bind(linear_swiglu, implementation=self.backend, config=config)(*arrays)
            for config in call.table[self.backend].module.candidates(call.spec)
        ]
        for out in outs[1:]:
            np.testing.assert_array_equal(out, outs[0])


@with_mosaic
@pytest.mark.parametrize(
    ("rows", "features", "capability", "expected"),
    [
        (50176, 384, 9.0, True),
        (50176, 768, 9.0, True),
        (50176, 192, 9.0, False),
        (2048, 384, 9.0, False),  # 16 blocks of rows leave most multiprocessors idle
        (17920, 384, 9.0, False),  # 140 blocks are a second round for 8 of them
        (50176, 384, 10.0, False),
    ],
)
def test_mosaic_leads_where_it_was_faster(rows, features, capability, expected):
    spec = LinearSwigluSpec(rows, features, 1024, np.dtype(jnp.bfloat16))
    assert pallas_mosaic_gpu.leads(spec, Device("cuda", "made_up", capability)) == expected


@with_mosaic
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (MosaicConfig(rows=256), "bytes of shared memory"),
        (MosaicConfig(columns=128, keep_rows=True), "two tiles of columns"),
        (MosaicConfig(stages=4, keep_rows=True), "needs 5 stages for 384 features"),
    ],
    ids=str,
)
def test_configs_that_the_mosaic_kernel_refuses(config, reason):
    """The last one would wait forever: the rows of a tile behind a ring that is full."""
    x = jax.ShapeDtypeStruct((256, 384), "bfloat16")
    kernel = jax.ShapeDtypeStruct((384, 256), "bfloat16")
    run = functools.partial(linear_swiglu, implementation="pallas_mosaic_gpu", config=config)
    with pytest.raises(ValueError, match=reason):
        jax.eval_shape(run, x, kernel)


@with_mosaic
@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((8, 64, 64), "float32", "must be bfloat16"),
        ((8, 96, 64), "bfloat16", "multiples of 64"),
        ((8, 64, 96), "bfloat16", "multiples of 64"),
        ((12, 64, 64), "bfloat16", "rows must be a multiple of 8"),
        ((0, 64, 64), "bfloat16", "no rows"),
    ],
)
def test_calls_that_the_mosaic_kernel_does_not_serve(shape, dtype, reason):
    rows, features, width = shape
    x = jax.ShapeDtypeStruct((rows, features), dtype)
    kernel = jax.ShapeDtypeStruct((features, 2 * width), dtype)
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(
            functools.partial(linear_swiglu, implementation="pallas_mosaic_gpu"), x, kernel
        )


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((4, 16, 16), "float32", "must be bfloat16"),
        ((4, 24, 16), "bfloat16", "multiples of 16"),
        ((4, 16, 24), "bfloat16", "multiples of 16"),
        ((0, 16, 16), "bfloat16", "no rows"),
    ],
)
def test_calls_without_a_kernel_fall_through(shape, dtype, reason):
    rows, features, width = shape
    x, kernel = jnp.ones((rows, features), dtype), jnp.ones((features, 2 * width), dtype)
    with pytest.raises(NotImplementedError, match=reason):
        linear_swiglu(x, kernel, implementation=NAME)
    assert linear_swiglu(x, kernel).shape == (rows, width)


@pytest.mark.parametrize(
    ("x", "kernel", "error", "message"),
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
def test_errors(unchecked, x, kernel, error, message):
    with pytest.raises(error, match=message):
        linear_swiglu(x, kernel)
