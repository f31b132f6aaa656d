"""The kernels of norms: activations, configs, and rows that do not touch each other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import norm_act
from kernels_pallas.norm.pallas_triton.activation import activate, activation_slope
from kernels_pallas.norm.pallas_triton.config import heuristic
from kernels_pallas.norm.spec import NormSpec
from kernels_pallas.testing.op_test import on_gpu


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


@on_gpu
@pytest.mark.gpu
def test_rows_do_not_touch_on_a_gpu():
    x = jax.random.normal(jax.random.key(0), (77, 48), "bfloat16")
    run = jax.jit(
        functools.partial(norm_act, kind="layer", epsilon=1e-5, implementation="pallas_triton")
    )
    poisoned = jnp.concatenate([x, jnp.full_like(x, jnp.nan)])
    np.testing.assert_array_equal(run(poisoned, jnp.ones(48))[:77], run(x, jnp.ones(48)))
