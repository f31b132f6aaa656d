"""Gated linear attention in a Mosaic kernel for Hopper GPUs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from kernels_pallas import gla
from kernels_pallas.core.device import Device
from kernels_pallas.core.dispatch import observe
from kernels_pallas.gla import pallas_mosaic_gpu
from kernels_pallas.gla.pallas_mosaic_gpu.config import Config
from kernels_pallas.gla.pallas_mosaic_gpu.kernels import has_strong_decays
from kernels_pallas.operators import OPERATORS
from kernels_pallas.testing import GATE_KINDS, TOLERANCES, interpret, random_inputs
from kernels_pallas.testing.numpy_gla import numpy_gla
from kernels_pallas.testing.op_test import OpTest, on_gpu, with_mosaic

NAME = "pallas_mosaic_gpu"
TRITON = (
    *("gla_forward", "gla_forward_strong_decays"),
    *("gla_backward", "gla_backward_strong_decays"),
)


@with_mosaic
class TestGlaOnMosaic(OpTest):
    """Gradients come from another implementation."""

    op = "gla"
    backend = NAME
    portable = ("xla_chunked",)
    forward_launches = ("gla_forward_wide",)
    gradient_launches = TRITON
    remat_launches = ("gla_forward_wide", *TRITON)
    test_formula = test_portable = test_the_default_takes_the_kernels_on_cuda_only = None
    # test_scan has the values of interpreted kernels; they take long.
    test_interpreted = test_vmap = None

    def cases(self, *, model):
        names = {"tiny_wide", "lm_2048", "lm_4096"}
        return [case for case in super().cases(model=model) if case.name in names]


def check(inputs, *, reverse=False, config=None):
    """Compares outputs and the final state with a loop in numpy."""
    run = functools.partial(
        gla, implementation=NAME, reverse=reverse, return_final_state=True, config=config
    )
    q, k, v, log_decay, state = *inputs[:4], inputs.initial_state
    actual = run(q, k, v, log_decay, initial_state=state)
    expected = numpy_gla(q, k, v, log_decay, state, reverse=reverse)
    test = TestGlaOnMosaic()
    test.compare(actual, expected, TOLERANCES["bfloat16"].forward, "output or state")


@with_mosaic
@pytest.mark.filterwarnings("ignore:.*encountered in matmul:RuntimeWarning")  # not exact yet
@pytest.mark.parametrize(
    ("tokens", "value_width", "gates", "reverse", "config"),
    [
        (136, 64, "typical", False, None),  # more chunks than stages, the last one ragged
        (200, 64, "typical", True, Config(stages=3, decay_stages=2)),
        (72, 64, "reset", False, None),
        (72, 64, "mixed", True, None),
    ],
)
def test_scan(tokens, value_width, gates, reverse, config):
    inputs = random_inputs(
        tokens,
        batch=1,
        tokens=tokens,
        heads=1,
        key_width=64,
        value_width=value_width,
        gates=gates,
        dtype="bfloat16",
    )
    with interpret():
        check(inputs, reverse=reverse, config=config)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("gates", GATE_KINDS)
@pytest.mark.parametrize(("key_width", "value_width"), [(64, 64), (128, 128), (128, 256)])
def test_decays_on_a_gpu(key_width, value_width, gates, reverse):
    widths = {"key_width": key_width, "value_width": value_width}
    inputs = random_inputs(3, batch=2, tokens=328, heads=3, gates=gates, dtype="bfloat16", **widths)
    check(inputs, reverse=reverse)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [Config(3, 1, 2), Config(4, 2, 1), Config(2, 2, 2)],
    ids=str,
)
def test_configs_on_a_gpu(config):
    inputs = random_inputs(
        4, batch=2, tokens=520, heads=3, key_width=64, value_width=128, dtype="bfloat16"
    )
    check(inputs, config=config)


def spec_of(options=None, **changes):
    """Returns the spec of a call that is served, with changes."""
    sizes = {"tokens": 64, "key_width": 64, "value_width": 64, "dtype": "bfloat16"} | changes
    keys = jax.ShapeDtypeStruct((1, sizes["tokens"], 1, sizes["key_width"]), sizes["dtype"])
    values = jax.ShapeDtypeStruct((*keys.shape[:3], sizes["value_width"]), sizes["dtype"])
    decays = jax.ShapeDtypeStruct(keys.shape, jnp.float32)
    run = functools.partial(gla, implementation=NAME, **options or {})
    return run, (keys, keys, values, decays)


@with_mosaic
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"dtype": "float32"}, "must be bfloat16"),
        ({"key_width": 32}, "64 or 128"),
        ({"value_width": 96}, "a multiple of 64"),
        ({"tokens": 68}, "tokens must be a multiple of 8"),
    ],
)
def test_calls_that_are_not_served(changes, reason):
    run, arrays = spec_of(**changes)
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(run, *arrays)


@with_mosaic
@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (Config(scanning=2), "multiple of 128 values"),
        (Config(stages=9), "bytes of shared memory"),
    ],
    ids=str,
)
def test_configs_that_are_refused(config, reason):
    run, arrays = spec_of({"config": config})
    with pytest.raises(ValueError, match=reason):
        jax.eval_shape(run, *arrays)


@with_mosaic
@pytest.mark.parametrize(
    ("changes", "capability", "expected"),
    [
        ({}, 9.0, True),
        ({"value_width": 256}, 9.0, True),
        ({"key_width": 64}, 9.0, False),
        ({"batch": 1}, 9.0, False),  # 32 programs leave most multiprocessors idle
        ({"bidirectional": True}, 9.0, False),
        ({}, 10.0, False),
    ],
)
def test_it_leads_where_it_was_faster(changes, capability, expected):
    case = next(case for case in OPERATORS["gla"].cases if case.name == "lm_4096")
    spec = dataclasses.replace(observe(case.bind(gla), *case.args.values()).spec, **changes)
    assert pallas_mosaic_gpu.leads(spec, Device("cuda", "made_up", capability)) == expected


@pytest.mark.parametrize(("least", "strong"), [(None, True), (-1.9, True), (-1.8, False)])
def test_a_promise_of_mild_decays_leaves_the_exact_pass_out(least, strong):
    case = TestGlaOnMosaic().cases(model=False)[0]
    call = TestGlaOnMosaic().call(case)
    spec = dataclasses.replace(call.spec, min_log_decay=least)
    assert has_strong_decays(spec) == strong
