"""Tests what the kernels of all operators share: devices, sizes, configs."""

import dataclasses
import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from kernels_pallas.core import launch
from kernels_pallas.core.arg_specs import MODEL
from kernels_pallas.core.device import Device
from kernels_pallas.core.dispatch import observe
from kernels_pallas.operators import OPERATORS
from kernels_pallas.testing import interpret, rms_relative_error

NAME = "pallas_triton"
operators = pytest.mark.parametrize("operator", OPERATORS)


def call_of(operator, **options):
    """Returns the operator as a function of arrays, and the arrays of a call of a model."""
    function, cases = OPERATORS[operator]
    case = next(case for case in cases if MODEL in case.tags)
    return case.bind(function, **options), tuple(case.args.values())


def test_no_operator_is_forgotten():
    public = {name for name in kernels_pallas.__all__ if name.islower()}
    # gla_step has no implementations: it is one token of `gla`.
    assert public - {"autotune", "implementations", "gla_step"} == set(OPERATORS)


@pytest.fixture
def capability(monkeypatch):
    """Sets that of the only GPU."""

    def set_to(value):
        monkeypatch.setattr(launch, "local_gpu", lambda: Device("cuda", "made_up", value))

    return set_to


@operators
def test_an_old_gpu_is_refused(capability, operator):
    capability(7.5)
    run, arrays = call_of(operator, implementation=NAME)
    with pytest.raises(NotImplementedError, match=r"compute capability 7.5 .* \[[89].0"):
        jax.eval_shape(run, *arrays)
    run, arrays = call_of(operator)
    jax.eval_shape(run, *arrays)  # by another implementation


@pytest.mark.parametrize("operator", ["linear_swiglu", "swiglu_mlp"])
@pytest.mark.parametrize("value", [8.9, 12.0])
def test_gpus_without_room_for_the_products_tiles_are_refused(capability, operator, value):
    capability(value)
    run, arrays = call_of(operator, implementation=NAME)
    with pytest.raises(NotImplementedError, match=r"compute capability .* \[9.0, 12.0\)"):
        jax.eval_shape(run, *arrays)


@pytest.mark.parametrize(
    ("operator", "maps", "reason"),
    [
        ("bidirectional_gla", 5, "programs are more than"),
        ("depthwise_conv", 1, "pixels"),
        ("linear_swiglu", 1, "rows"),
        ("norm_act", 1, "vectors"),
        ("swiglu_mlp", 1, "rows"),
        ("vig_mixer", 2, r"B \* T \* H"),
    ],
)
def test_more_than_32_bits_number_is_refused(operator, maps, reason):
    run, arrays = call_of(operator, implementation=NAME)
    huge = [jax.ShapeDtypeStruct((2**31, *x.shape[1:]), x.dtype) for x in arrays[:maps]]
    with pytest.raises(NotImplementedError, match=reason):
        jax.eval_shape(run, *huge, *arrays[maps:])


@operators
def test_config(operator):
    """That of the kernels is accepted, also with other implementations after them."""
    run, arrays = call_of(operator)
    call = observe(run, *arrays)
    module = call.table[NAME].module
    config = module.heuristic(call.spec, None)
    expected = jax.eval_shape(run, *arrays)
    for implementation in (NAME, None):
        run, _ = call_of(operator, implementation=implementation, config=config)
        assert jax.eval_shape(run, *arrays) == expected


@operators
def test_a_config_of_another_implementation_is_refused(operator):
    @dataclasses.dataclass(frozen=True)
    class Config:
        rows: int = 1

    run, arrays = call_of(operator, config=Config())
    with pytest.raises(
        TypeError, match=r"config is a .*Config, which does not belong .*'reference' takes no c"
    ):
        jax.eval_shape(run, *arrays)


def test_without_backends_of_pallas_portable_implementations_serve():
    """In a process in which the modules cannot be imported; the reason is logged once."""
    program = """
        import logging, sys
        logging.basicConfig(level=logging.INFO)
        for name in ("triton", "mosaic_gpu"):
            sys.modules[f"jax.experimental.pallas.{name}"] = None
        import jax.numpy as jnp
        import kernels_pallas
        x = jnp.ones((2, 4))
        print(kernels_pallas.swiglu(x).shape, kernels_pallas.swiglu(2 * x).shape)
        for op, name in (("swiglu", "triton"), ("gla", "mosaic_gpu")):
            arrays = (x,) if op == "swiglu" else (jnp.ones((1, 8, 1, 64), "bfloat16"),) * 4
            try:
                getattr(kernels_pallas, op)(*arrays, implementation=f"pallas_{name}")
            except NotImplementedError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(kernels_pallas.__file__).parents[1],
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "(2, 2) (2, 2)" in done.stdout
    assert "has no Triton backend of Pallas" in done.stdout
    assert "has no Mosaic GPU backend of Pallas as of JAX 0.11" in done.stdout
    assert done.stderr.count("WARNING:kernels_pallas") == 1
    assert done.stderr.count("swiglu: using xla") == 1


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a machine without a GPU")
@pytest.mark.parametrize("implementation", [NAME, (NAME,)], ids=str)
def test_off_cuda_the_kernels_by_name_are_refused(implementation):
    run = functools.partial(kernels_pallas.swiglu, implementation=implementation)
    for way in (run, jax.jit(run)):
        with pytest.raises(NotImplementedError, match="cannot be lowered for cpu"):
            way(jnp.ones((3, 4)))


def test_interpreted_the_kernels_run_anywhere():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 4)), "float32")
    with interpret():
        out = jax.jit(functools.partial(kernels_pallas.swiglu, implementation=[NAME]))(x)
    assert rms_relative_error(out, kernels_pallas.swiglu(x)) <= 1e-6
