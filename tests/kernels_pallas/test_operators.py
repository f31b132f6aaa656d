"""What holds for the CUDA kernels of every operator."""

import functools
from collections import Counter

import jax
import jax.numpy as jnp
import pytest

import kernels_pallas
from kernels_pallas.core import launch
from kernels_pallas.core.device import Device
from kernels_pallas.testing import interpret, launches, rms_relative_error

NAME = "pallas_triton"


def ones(*shape, dtype=jnp.float32):
    return jnp.ones(shape, dtype)


def narrow(*shape):
    return ones(*shape, dtype=jnp.bfloat16)


GLA = (ones(1, 3, 1, 2),) * 5
CALLS = {
    "bidirectional_gla": (GLA, {}),
    "im2col": ((ones(1, 4, 4, 1),), {"kernel_size": 3, "stride": 2}),
    "depthwise_conv": ((ones(1, 2, 2, 4), ones(3, 3, 1, 4)), {"activation": "silu"}),
    "gla": (GLA[:4], {}),
    "linear_swiglu": ((narrow(3, 16), narrow(16, 32)), {}),
    "norm_act": ((ones(3, 4), ones(4)), {"kind": "rms", "epsilon": 1e-6}),
    "residual_norm": ((ones(3, 4), ones(3, 4), ones(4)), {"kind": "layer", "epsilon": 1e-6}),
    "swiglu": ((ones(3, 4),), {}),
    "swiglu_mlp": ((narrow(3, 16), narrow(16, 32), narrow(16, 16)), {}),
    "vig_mixer": (
        (
            ones(1, 3, 14),
            ones(1, 3, 4),
            *(ones(*n) for n in ((4,), (2, 4), (4,), (4,), (4,), (4, 3))),
        ),
        {"heads": 1},
    ),
}
operators = pytest.mark.parametrize("operator", CALLS)


def call_of(operator, **options):
    """The operator, its settings given, and its arrays."""
    arrays, settings = CALLS[operator]
    return functools.partial(getattr(kernels_pallas, operator), **settings, **options), arrays


def test_no_operator_is_forgotten():
    public = {name for name in kernels_pallas.__all__ if name.islower()} - {"autotune"}
    assert public == set(CALLS)


@pytest.fixture
def capability(monkeypatch):
    """Sets that of the only GPU."""
    jax.clear_caches()

    def set_to(value):
        gpu = Device("cuda", "made_up", value)
        monkeypatch.setattr(launch, "local_gpu", lambda: gpu)

    yield set_to
    jax.clear_caches()


@operators
def test_an_old_gpu_is_refused(capability, operator):
    capability(7.5)
    run, arrays = call_of(operator, implementation=NAME)
    with pytest.raises(NotImplementedError, match=r"compute capability 7.5 .* \[[89].0"):
        jax.eval_shape(run, *arrays)
    run, arrays = call_of(operator)
    jax.eval_shape(run, *arrays)  # by something else


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
        ("bidirectional_gla", 5, "2147483648 programs are more than"),
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


def second_derivative(run):
    """The derivative of the squared gradient by the first array."""

    def squares(f):
        return lambda *arrays: sum(
            jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(f(*arrays))
        )

    return jax.grad(squares(jax.grad(squares(run))))


@operators
def test_a_second_derivative_is_refused_and_what_to_do_is_told(operator):
    run, arrays = call_of(operator)
    portable = "xla_chunked" if "gla" in operator or "mixer" in operator else "xla"
    further, _ = call_of(operator, implementation=portable)
    expected = jax.eval_shape(second_derivative(further), *arrays)
    assert expected.shape == arrays[0].shape
    if operator == "im2col":  # its backward pass is XLA's
        assert jax.eval_shape(second_derivative(run), *arrays) == expected
        return
    with pytest.raises(NotImplementedError, match=f"once, in reverse mode.*'{portable}'"):
        jax.eval_shape(second_derivative(run), *arrays)


REMAT_LAUNCHES = {
    "depthwise_conv": (
        "depthwise_conv_forward",
        "depthwise_conv_activation_gradient",
        "depthwise_conv_gradient",
    ),
    "im2col": ("im2col",),
    "linear_swiglu": ("linear_swiglu", "swiglu_backward"),
    "norm_act": ("norm_forward", "norm_backward"),
    # The backward pass normalises the sum, which the second forward pass recomputes.
    "residual_norm": ("norm_forward", "norm_forward", "norm_backward"),
    "swiglu": ("swiglu_forward", "swiglu_backward"),
    "swiglu_mlp": ("linear_swiglu", "swiglu_backward_and_output"),
}


@pytest.mark.parametrize("operator", REMAT_LAUNCHES)
def test_under_checkpoint_the_first_forward_pass_is_that_of_inference(operator):
    run, arrays = call_of(operator, implementation=NAME)
    counts = launches(with_gradients(jax.checkpoint(run)), *arrays)
    assert counts == Counter(REMAT_LAUNCHES[operator])


def with_gradients(run):
    def call(*arrays):
        out, pullback = jax.vjp(run, *arrays)
        return out, pullback(out)

    return call


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a machine without a GPU")
@pytest.mark.parametrize("implementation", [NAME, (NAME,)], ids=str)
def test_off_cuda_the_kernels_by_name_are_refused(implementation):
    run, arrays = call_of("swiglu", implementation=implementation)
    for way in (run, jax.jit(run)):
        with pytest.raises(NotImplementedError, match="cannot be lowered for cpu"):
            way(*arrays)


def test_interpreted_the_kernels_run_anywhere():
    run, arrays = call_of("swiglu", implementation=[NAME])
    with interpret():
        out = jax.jit(run)(*arrays)
    assert rms_relative_error(out, call_of("swiglu")[0](*arrays)) <= 1e-6
