"""Parts of a sequence with an exchange of states have the result and gradients of the whole.

The parts are mapped by `jax.vmap` with a name, so one device computes all of them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import bidirectional_gla, vig_mixer
from kernels_pallas.gla.pallas_triton.config import Config, KernelConfig, heuristic
from kernels_pallas.gla.spec import GlaSpec
from kernels_pallas.testing import (
    GATE_KINDS,
    TOLERANCES,
    interpret,
    random_inputs,
    rms_relative_error,
)
from kernels_pallas.testing.op_test import on_gpu, second_derivative
from kernels_pallas.vig_mixer import pallas_triton
from kernels_pallas.vig_mixer.spec import MixerInputs
from tests.kernels_pallas.vig_mixer.test_vig_mixer import make, spec_of


def exchange(states, decays, reverse):
    """Computes the states that arrive at every part, by the definition, and takes its own."""
    states, decays = jax.lax.all_gather((states, decays), "parts")
    arriving = []
    for number, backwards in enumerate(reverse):
        state = jnp.zeros_like(states[0, 0])
        before = [state] * len(states)
        for part in reversed(range(len(states))) if backwards else range(len(states)):
            before[part] = state
            state = decays[part, number, ..., None] * state + states[part, number]
        arriving.append(jnp.stack(before)[jax.lax.axis_index("parts")])
    return jnp.stack(arriving)


def split(x, parts):
    return jnp.moveaxis(x.reshape(x.shape[0], parts, -1, *x.shape[2:]), 1, 0)


def join(x):
    return jnp.moveaxis(x, 0, 1).reshape(x.shape[1], -1, *x.shape[3:])


def with_gradients(run, arrays, cotangent):
    out, pullback = jax.vjp(run, *arrays)
    return out, *pullback(cotangent)


def in_parts(run, parts):
    """Returns a compiled function of arrays of whole sequences; `run` computes a part."""

    @jax.jit
    def compute(arrays, cotangent):
        mapped = jax.vmap(functools.partial(with_gradients, run), axis_name="parts")
        shards = [split(x, parts) for x in arrays]
        return [join(x) for x in mapped(shards, split(cotangent, parts))]

    return compute


whole = jax.jit(
    functools.partial(
        with_gradients, functools.partial(bidirectional_gla, implementation="reference")
    )
)


def check(run, gates, dtype="float32", tokens=44):
    """Compares with the reference for the whole sequence in float64."""
    shape = {"batch": 2, "tokens": tokens, "heads": 1, "key_width": 4, "value_width": 6}
    *arrays, _, cotangent = random_inputs(0, gates=gates, dtype=dtype, **shape)
    actual = run(arrays, cotangent)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (*arrays, cotangent)]
        expected = jax.tree.map(np.asarray, whole(wide[:-1], wide[-1]))
    tolerance = TOLERANCES[dtype]
    for i, (mine, right) in enumerate(zip(actual, expected, strict=True)):
        error = rms_relative_error(mine, right)
        allowed = tolerance.gradient if i else tolerance.forward
        assert error <= allowed, f"{gates}: result {i} is off by {error:.1e} > {allowed:.0e}"


@pytest.mark.parametrize(("name", "parts"), [("xla_chunked", 4), ("reference", 2)])
def test_parts_of_a_sequence(name, parts):
    part = functools.partial(bidirectional_gla, exchange=exchange, implementation=name)
    run = in_parts(part, parts)
    for gates in GATE_KINDS if name == "xla_chunked" else ("mixed",):
        check(run, gates)


@pytest.mark.slow
def test_interpreted_parts_of_a_sequence():
    """The last chunk of each part has tokens after the end, which states pass unchanged."""
    part = functools.partial(bidirectional_gla, exchange=exchange, implementation="pallas_triton")
    with interpret():
        run = in_parts(part, 2)
        for gates in ("typical", "mixed"):
            check(run, gates, tokens=22)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [1, 2])
def test_interpreted_parts_of_the_mixer(segments):
    """Tokens after the end have gates, too; they must not decay a state that passes them."""
    launch = KernelConfig(segments=segments)
    inputs, cotangent = make((1, 42, 2, 8), "float32", strength=30.0)
    spec = dataclasses.replace(spec_of((1, 21, 2, 8), "float32"), exchange=exchange)

    def part(projected, local, cotangent):
        def run(*arrays):
            config = Config(launch, launch, launch)
            return pallas_triton.run(spec, MixerInputs(*arrays), config=config)

        out, *grads = with_gradients(run, (projected, local, *inputs[2:]), cotangent)
        return out, *grads[:2], *(jax.lax.psum(x, "parts") for x in grads[2:])

    shards = [split(x, 2) for x in (*inputs[:2], cotangent)]
    with interpret():
        actual = jax.jit(jax.vmap(part, axis_name="parts"))(*shards)
    actual = [join(x) for x in actual[:3]] + [x[0] for x in actual[3:]]
    reference = functools.partial(vig_mixer, heads=2, implementation="reference")
    expected = jax.jit(functools.partial(with_gradients, reference))(inputs, cotangent)
    for mine, right in zip(actual, expected, strict=True):
        assert rms_relative_error(mine, right) <= TOLERANCES["float32"].gradient


def test_second_derivatives_of_parts():
    """Also when parts of several sequences are mapped at once."""
    shape = {"batch": 1, "tokens": 12, "heads": 1, "key_width": 3, "value_width": 2}
    arrays = [
        jnp.stack(pair)
        for pair in zip(*(random_inputs(i, gates="mild", **shape)[:5] for i in (0, 1)), strict=True)
    ]
    part = functools.partial(bidirectional_gla, exchange=exchange, implementation="xla_chunked")
    whole = functools.partial(bidirectional_gla, implementation="reference")
    mapped = jax.vmap(jax.vmap(second_derivative(part)), axis_name="parts")
    shards = [jnp.moveaxis(x.reshape(2, 1, 2, 6, *x.shape[3:]), 2, 0) for x in arrays]
    actual = jnp.moveaxis(jax.jit(mapped)(*shards), 0, 2).reshape(arrays[0].shape)
    expected = jax.jit(jax.vmap(second_derivative(whole)))(*arrays)
    assert rms_relative_error(actual, expected) <= TOLERANCES["float32"].gradient


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("gates", ["typical", "mixed"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_parts_on_a_gpu(dtype, gates):
    """Each part has several segments, and the last one a chunk with tokens after the end."""
    part = functools.partial(bidirectional_gla, exchange=exchange, implementation="pallas_triton")
    check(in_parts(part, 2), gates, dtype, tokens=2200)


def test_what_parts_exchange():
    """States move with the scans and gradients against them, whatever the number of tokens."""

    def exchanged(tokens):
        shape = {"batch": 1, "tokens": tokens, "heads": 1, "key_width": 4, "value_width": 6}
        *arrays, _, cotangent = random_inputs(0, **shape)
        calls = []

        def counted(states, decays, reverse):
            calls.append((states.shape, decays.shape, tuple(reverse)))
            return exchange(states, decays, reverse)

        part = functools.partial(
            bidirectional_gla, exchange=counted, implementation="pallas_triton"
        )
        run = jax.vmap(functools.partial(with_gradients, part), axis_name="parts")
        jax.eval_shape(run, [split(x, 2) for x in arrays], split(cotangent, 2))
        return set(calls)  # JAX traces a function with a derivative twice

    state, decay = (2, 1, 1, 4, 6), (2, 1, 1, 4)
    assert exchanged(4096) == {(state, decay, (False, True)), (state, decay, (True, False))}


def test_an_exchange_allows_shorter_segments():
    """The pass over keys and values that they cost is needed anyway."""
    spec = GlaSpec(
        batch=1, tokens=8192, heads=3, key_width=32, value_width=64,
        dtype=jnp.dtype("bfloat16"), decay_dtype=jnp.dtype("bfloat16"), scale=1.0,
        bidirectional=True, gate_normalizer=16.0,
    )  # fmt: skip
    part = dataclasses.replace(spec, exchange=exchange)
    assert heuristic(part).forward.segments == 2 * heuristic(spec).forward.segments
    assert part.tuning_key == spec.tuning_key


def test_an_exchange_must_be_a_hashable_function(unchecked):
    shape = {"batch": 1, "tokens": 2, "heads": 1, "key_width": 2, "value_width": 2}
    arrays = random_inputs(0, **shape)[:5]
    with pytest.raises(TypeError, match="exchange must be a hashable function or None, got list"):
        bidirectional_gla(*arrays, exchange=[])
