"""Argument checks of the public operators, and their messages."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from kernels_pallas.testing import TOLERANCES, random_inputs, rms_relative_error

# The tests' shape checker would speak before the operators do.
gla = inspect.unwrap(kernels_pallas.gla)
bidirectional_gla = inspect.unwrap(kernels_pallas.bidirectional_gla)


@pytest.fixture
def inputs():
    return random_inputs(0, batch=2, tokens=5, heads=2, key_width=4, value_width=6)


def test_rank(inputs):
    with pytest.raises(ValueError, match=r"q must have four axes .* got shape \(5, 2, 4\)"):
        gla(inputs.q[0], *inputs[1:4])


def test_no_tokens(inputs):
    with pytest.raises(ValueError, match="q must have at least one token"):
        gla(*(x[:, :0] for x in inputs[:4]))


@pytest.mark.parametrize("name", ["k", "log_decay"])
def test_shape_of_q(inputs, name):
    arguments = dict(zip(("q", "k", "v", "log_decay"), inputs[:4], strict=True))
    arguments[name] = arguments[name][..., :3]
    with pytest.raises(ValueError, match=rf"{name} must have the shape of q, \(2, 5, 2, 4\)"):
        gla(**arguments)


def test_layout_of_v(inputs):
    with pytest.raises(ValueError, match=r"v must share batch, tokens and heads .*the layout is"):
        gla(*inputs[:2], inputs.v[:, :4], inputs.log_decay_fwd)


def test_shape_of_the_state(inputs):
    with pytest.raises(ValueError, match=r"initial_state must have shape .*\(2, 2, 4, 6\)"):
        gla(*inputs[:4], initial_state=inputs.initial_state[0])


def test_not_an_array(inputs):
    with pytest.raises(TypeError, match="k must be a JAX or numpy array, got list"):
        gla(inputs.q, [1.0], *inputs[2:4])


def test_integers(inputs):
    with pytest.raises(TypeError, match=r"v must be one of float32, .* got int32"):
        gla(*inputs[:2], inputs.v.astype(int), inputs.log_decay_fwd)


def test_mixed_types(inputs):
    with pytest.raises(TypeError, match="k must have the type of q, float32, got bfloat16"):
        gla(inputs.q, inputs.k.astype(jnp.bfloat16), *inputs[2:4])
    with pytest.raises(TypeError, match="log_decay_bwd must have the type of log_decay_fwd"):
        bidirectional_gla(*inputs[:4], inputs.log_decay_bwd.astype(jnp.bfloat16))


def test_scale_and_flags_are_static(inputs):
    with pytest.raises(TypeError, match="scale must be a Python number"):
        gla(*inputs[:4], scale=inputs.q)
    with pytest.raises(TypeError, match="reverse must be True or False"):
        gla(*inputs[:4], reverse="yes")


@pytest.mark.parametrize("function", [gla, bidirectional_gla])
def test_unknown_implementation(inputs, function):
    arguments = inputs[: 4 if function is gla else 5]
    with pytest.raises(ValueError, match=r"'xla_chunk'; did you mean 'xla_chunked'\? \(known: "):
        function(*arguments, implementation="xla_chunk")
    with pytest.raises(ValueError, match="empty sequence"):
        function(*arguments, implementation=[])


def test_positive_decays_are_checked_on_demand(inputs, monkeypatch):
    positive = inputs.log_decay_fwd.at[0, 1, 0, 2].set(0.25)
    gla(*inputs[:3], positive)
    monkeypatch.setenv("KERNELS_PALLAS_CHECK_DECAY", "1")
    gla(*inputs[:4])
    gla(*inputs[:3], inputs.log_decay_fwd.at[0].set(-jnp.inf))
    with pytest.raises(ValueError, match=r"log_decay must be in \[-inf, 0\].*0.25"):
        gla(*inputs[:3], positive)
    with pytest.raises(ValueError, match="log_decay_bwd must be in"):
        bidirectional_gla(*inputs[:4], positive * jnp.nan)
    jax.jit(gla)(*inputs[:3], positive)  # no values to look at


def test_numpy_arguments(inputs):
    out = gla(*(np.asarray(x) for x in inputs[:4]))
    assert rms_relative_error(out, gla(*inputs[:4])) == 0.0


def test_a_promise_of_mild_decays_changes_nothing_that_keeps_it():
    inputs = random_inputs(0, batch=1, tokens=40, heads=2, key_width=4, value_width=8, gates="mild")
    for implementation in ("xla_chunked", "reference"):
        run = functools.partial(bidirectional_gla, implementation=implementation)
        error = rms_relative_error(run(*inputs[:5], min_log_decay=-1.0), run(*inputs[:5]))
        assert error <= TOLERANCES["float32"].forward, implementation


def test_a_broken_promise_raises_where_values_are_checked(monkeypatch):
    inputs = random_inputs(0, batch=1, tokens=9, heads=1, key_width=4, value_width=4, gates="mild")
    with pytest.raises(ValueError, match="at most 0"):
        bidirectional_gla(*inputs[:5], min_log_decay=0.5)
    monkeypatch.setenv("KERNELS_PALLAS_CHECK_DECAY", "1")
    with pytest.raises(ValueError, match="below min_log_decay"):
        bidirectional_gla(*inputs[:5], min_log_decay=-0.01)
