"""The CUDA kernels of norms: interpreted and lowered without a GPU, run on one where there is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import norm_act, residual_norm
from kernels_pallas.norm import pallas_triton
from kernels_pallas.norm.pallas_triton.activation import activate, activation_slope
from kernels_pallas.norm.pallas_triton.config import Config, KernelConfig, heuristic
from kernels_pallas.norm.spec import NormSpec
from kernels_pallas.testing import TOLERANCES, interpret, launches, rms_relative_error

NAME = "pallas_triton"
on_gpu = pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a CUDA GPU")
EPSILON = 0.3  # large, so that gradients of one or two channels are not all cancelled


def draw(seed, shape, dtype="float32"):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def norm_inputs(shape, dtype, bias):
    width = shape[-1]
    vectors = [1 + draw(1, (width,)) / 2, *([draw(2, (width,))] if bias else [])]
    return (0.5 + draw(0, shape, dtype), *vectors), draw(3, shape, dtype)


def sum_inputs(shape, dtype, bias):
    (x, *vectors), cotangent = norm_inputs(shape, dtype, bias)
    return (x, draw(4, shape, dtype), *vectors), (draw(5, shape, dtype), cotangent)


def with_gradients(run):
    """Outputs and the gradients of all arguments."""

    def call(arguments, cotangent):
        out, pullback = jax.vjp(run, *arguments)
        return jax.tree.leaves(out), pullback(cotangent)

    return jax.jit(call)


def wide(tree):
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def compare(run, reference, arguments, cotangent, label):
    """`run` against float32 all through; sums are compared before, as they are rounded."""
    dtype = arguments[0].dtype
    outs, gradients = with_gradients(run)(arguments, cotangent)
    expected, expected_gradients = with_gradients(reference)(wide(arguments), wide(cotangent))
    for i, (mine, right) in enumerate(zip(outs, expected, strict=True)):
        assert mine.dtype == dtype
        error = rms_relative_error(mine, right)
        assert error <= TOLERANCES[dtype.name].forward, f"{label}: output {i} is off by {error:.1e}"
    for i, (mine, right) in enumerate(zip(gradients, expected_gradients, strict=True)):
        error = rms_relative_error(mine, right)
        allowed = TOLERANCES[dtype.name].gradient
        assert error <= allowed, f"{label}: gradient {i} is off by {error:.1e}"


def check_norm(shape, dtype, kind, bias, activation, config=None):
    arguments, cotangent = norm_inputs(shape, dtype, bias)
    spec = NormSpec(
        rows=int(np.prod(shape[:-1])),
        width=shape[-1],
        dtype=arguments[0].dtype,
        kind=kind,
        epsilon=EPSILON,
        activation=activation,
    )

    def run(x, scale, bias=None):
        return pallas_triton.run(spec, x, None, None, scale, bias, config=config)[1]

    options = {"kind": kind, "epsilon": EPSILON, "activation": activation, "implementation": "xla"}
    reference = functools.partial(norm_act, **options)
    compare(run, reference, arguments, cotangent, f"{shape} {kind} {activation} {config}")


def check_sum(shape, dtype, kind, bias, kept, config=None):
    arguments, cotangent = sum_inputs(shape, dtype, bias)
    keep = None
    if kept:
        keep = jnp.arange(shape[0], dtype=jnp.float32) % 3 * 0.75
    spec = NormSpec(
        rows=int(np.prod(shape[:-1])),
        width=shape[-1],
        dtype=arguments[0].dtype,
        kind=kind,
        epsilon=EPSILON,
        residual=True,
        images=shape[0] if kept else 0,
    )

    def run(x, branch, scale, bias=None):
        return pallas_triton.run(spec, x, branch, keep, scale, bias, config=config)

    options = {"kind": kind, "epsilon": EPSILON, "keep": keep, "implementation": "xla"}
    reference = functools.partial(residual_norm, **options)
    compare(run, reference, arguments, cotangent, f"{shape} {kind} keep {kept} {config}")


@pytest.mark.parametrize(
    ("shape", "dtype", "kind", "bias", "activation"),
    [
        ((3, 5, 48), "float32", "layer", True, None),
        ((2, 7, 96), "bfloat16", "layer", True, "gelu"),
        ((37, 24), "bfloat16", "rms", False, "silu"),
        ((5, 33), "float32", "rms", True, "gelu"),
        ((4, 20), "float32", "layer", False, "silu"),
        ((2, 1), "bfloat16", "rms", True, None),
    ],
)
def test_interpreted(shape, dtype, kind, bias, activation):
    with interpret():
        check_norm(shape, dtype, kind, bias, activation)


@pytest.mark.parametrize(
    ("dtype", "kind", "bias", "kept"),
    [
        ("bfloat16", "rms", False, True),
        ("float32", "layer", True, True),
        ("bfloat16", "layer", True, False),
        ("float32", "rms", False, False),
    ],
)
def test_interpreted_sums(dtype, kind, bias, kept):
    with interpret():
        check_sum((3, 7, 50), dtype, kind, bias, kept)


@pytest.mark.parametrize("tiling", [KernelConfig(2, 16, 1, 3), KernelConfig(8, 128, 1, 1)], ids=str)
def test_interpreted_tilings(tiling):
    """Several steps per program, ragged rows, ragged parts."""
    with interpret():
        check_sum((2, 11, 72), "float32", "layer", True, True, Config(tiling, tiling))


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 5e-7), ("bfloat16", 4e-5)])
def test_gelu(dtype, allowed):
    """Against the error function in float64, relative to the value, far into the tail."""
    x = np.linspace(-12, 12, 20001, dtype=np.float32)
    with jax.enable_x64(True):
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        value, slope = (np.asarray(f(jnp.asarray(x, jnp.float64))) for f in (gelu, slope_of(gelu)))
    mine = activate("gelu", jnp.asarray(x), np.dtype(dtype))
    # The exponent x^2 / 2 is rounded, as it is in JAX's own: that is an error of the power.
    room = allowed * (1 + x**2 / 4)
    np.testing.assert_array_less(np.abs(np.asarray(mine) - value), room * np.abs(value) + 1e-37)
    mine = activation_slope("gelu", jnp.asarray(x), np.dtype(dtype))
    np.testing.assert_array_less(np.abs(np.asarray(mine) - slope), allowed)


def test_silu():
    x = np.linspace(-100, 100, 2001, dtype=np.float32)
    mine = activate("silu", jnp.asarray(x), np.dtype("float32"))
    np.testing.assert_allclose(mine, jax.nn.silu(x), rtol=1e-5, atol=1e-30)
    mine = activation_slope("silu", jnp.asarray(x), np.dtype("float32"))
    np.testing.assert_allclose(mine, slope_of(jax.nn.silu)(x), rtol=1e-5, atol=3e-7)


def slope_of(function):
    return jax.vmap(jax.grad(function))


def lowered(run, *arguments):
    return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def both_ways(shape, dtype, *, activation=None, kind="layer"):
    """Everything for a shape: both operators, with gradients, and their arguments."""
    options = {"kind": kind, "epsilon": 1e-5, "implementation": NAME}

    def run(x, scale, bias, keep):
        def inner(x, scale, bias):
            total, y = residual_norm(x, x[::-1], scale, bias, keep=keep, **options)
            return total, norm_act(y, scale, bias, activation=activation, **options)

        out, pullback = jax.vjp(inner, x, scale, bias)
        return pullback(out)

    vector = jax.ShapeDtypeStruct(shape[-1:], jnp.float32)
    keep = jax.ShapeDtypeStruct(shape[:1], jnp.float32)
    return run, (jax.ShapeDtypeStruct(shape, dtype), vector, vector, keep)


@pytest.mark.parametrize(
    ("shape", "activation", "dtype"),
    [
        ((256, 14, 14, 384), None, "bfloat16"),
        ((256, 112, 112, 48), "gelu", "bfloat16"),
        ((256, 112, 112, 48), "gelu", "float32"),
        ((16, 28, 28, 192), "silu", "bfloat16"),
        ((2, 7, 7, 1024), None, "float32"),
        ((3, 1), "gelu", "bfloat16"),
        ((3, 2051), None, "bfloat16"),
        ((3, 2051), None, "float32"),
    ],
)
def test_lowers_for_cuda(shape, activation, dtype):
    run, arguments = both_ways(shape, dtype, activation=activation)
    assert "norm_backward" in lowered(run, *arguments)


def test_a_forward_pass_launches_no_kernel_for_gradients():
    x, vector = (
        jax.ShapeDtypeStruct((4, 49, 96), "bfloat16"),
        jax.ShapeDtypeStruct((96,), "float32"),
    )
    run = functools.partial(residual_norm, kind="rms", epsilon=1e-6, implementation=NAME)
    assert launches(run, x, x, vector) == {"norm_forward": 1}

    def gradient(x, branch, scale):
        out, pullback = jax.vjp(run, x, branch, scale)
        return pullback(out)

    assert launches(gradient, x, x, vector) == {"norm_backward": 1, "norm_forward": 1}


def test_the_default_takes_the_kernels_on_cuda_only():
    x, vector = jax.ShapeDtypeStruct((4, 96), "bfloat16"), jax.ShapeDtypeStruct((96,), "float32")
    traced = jax.jit(functools.partial(norm_act, kind="rms", epsilon=1e-6)).trace(x, vector)
    assert "norm_forward" in traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "norm_forward" not in traced.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("width", [1, 7, 48, 96, 128, 192, 384, 500, 768, 1024, 1536, 2048, 8192])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_tilings_cover_every_row_once(width, kind):
    for rows in (1, 37, 50176):
        for dtype in ("bfloat16", "float32"):
            spec = NormSpec(rows, width, np.dtype(jnp.dtype(dtype)), kind, 1e-6)
            for tiling in dataclass_values(heuristic(spec)):
                assert tiling.rows & (tiling.rows - 1) == 0
                assert tiling.columns & (tiling.columns - 1) == 0
                assert tiling.parts(spec) * tiling.columns >= width
                covered = tiling.programs(spec) * tiling.steps(spec) * tiling.rows
                assert rows <= covered < rows + tiling.programs(spec) * tiling.rows + tiling.rows


def dataclass_values(config):
    return config.forward, config.backward


def test_vit_widths_leave_no_lane_idle():
    for width in (48, 96, 192, 384, 768):
        spec = NormSpec(50176, width, np.dtype(jnp.bfloat16), "rms", 1e-6)
        for tiling in dataclass_values(heuristic(spec)):
            assert tiling.parts(spec) * tiling.columns == width


GPU_SHAPES = [
    (256, 14, 14, 384),
    (16, 56, 56, 96),
    (8, 112, 112, 48),
    (16, 28, 28, 192),
    (16, 7, 7, 768),
    (16, 7, 7, 1024),
    (3, 197, 500),
    (5, 3, 2048),
    (5, 2051),
    (1, 8192),
    (7, 1),
]


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("shape", GPU_SHAPES, ids=str)
def test_on_a_gpu(shape, dtype):
    check_norm(shape, dtype, "layer", True, "gelu")
    check_norm(shape, dtype, "rms", False, "silu")
    check_sum(shape, dtype, "layer", True, False)
    check_sum(shape, dtype, "rms", False, True)


@on_gpu
@pytest.mark.gpu
def test_rows_do_not_touch_on_a_gpu():
    x = draw(0, (77, 48), "bfloat16")
    run = jax.jit(functools.partial(norm_act, kind="layer", epsilon=1e-5, implementation=NAME))
    poisoned = jnp.concatenate([x, jnp.full_like(x, jnp.nan)])
    np.testing.assert_array_equal(run(poisoned, jnp.ones(48))[:77], run(x, jnp.ones(48)))


@on_gpu
@pytest.mark.gpu
def test_transformations_on_a_gpu():
    run = functools.partial(residual_norm, kind="layer", epsilon=1e-5, implementation=NAME)
    arguments, cotangent = sum_inputs((6, 50, 96), "bfloat16", True)
    expected = with_gradients(run)(arguments, cotangent)
    for again in (run, jax.checkpoint(run)):
        actual = with_gradients(again)(arguments, cotangent)
        jax.tree.map(np.testing.assert_array_equal, actual, expected)
    stacked = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), (arguments, cotangent))
    mapped = jax.jit(jax.vmap(with_gradients(run)))(*stacked)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b), mapped, expected)
