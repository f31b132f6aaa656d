"""Several sequences in one row have the results and gradients of each alone; single tokens."""

import functools
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import kernels_pallas
from kernels_pallas import IMPLEMENTATIONS, bidirectional_gla, gla, gla_step, vig_mixer
from kernels_pallas.gla import pallas_triton
from kernels_pallas.gla.pallas_triton.config import Config, KernelConfig
from kernels_pallas.gla.spec import GlaSpec
from kernels_pallas.testing import TOLERANCES, interpret, random_inputs, rms_relative_error
from kernels_pallas.testing.numpy_gla import numpy_gla
from kernels_pallas.testing.op_test import on_gpu
from tests.kernels_pallas.vig_mixer.test_vig_mixer import make as make_mixer

NAME = "pallas_triton"
PORTABLE = [name for name in IMPLEMENTATIONS if not name.startswith("pallas_")]
# Sequences of less than a chunk, of chunks and a rest, of no token, and tokens after the last.
BORDERS = np.array([0, 5, 40, 40, 66, 71], np.int32)
TOKENS = 75


def make(gates="typical", dtype="float32", borders=BORDERS, tokens=TOKENS, **widths):
    """Returns arrays of `bidirectional_gla` with a pair of states, and cotangents of results."""
    shape = {"batch": 1, "tokens": tokens, "heads": 2, "key_width": 4, "value_width": 6} | widths
    *arrays, _, cotangent = random_inputs(0, gates=gates, dtype=dtype, **shape)
    states = (2, len(borders) - 1, shape["heads"], shape["key_width"], shape["value_width"])
    wide = "float64" if dtype == "float64" else "float32"
    drawn = np.random.default_rng(1).standard_normal((2, *states))
    initial, grads = (tuple(jnp.asarray(pair, wide) for pair in x) for x in drawn)
    return (*arrays, *initial), (cotangent, *grads)


def attend(borders, implementation, *arrays, **options):
    """Returns the output and both final states."""
    out, finals = bidirectional_gla(
        *arrays[:5],
        initial_states=tuple(arrays[5:]),
        return_final_states=True,
        cu_seqlens=borders,
        implementation=implementation,
        **options,
    )
    return out, *finals


REFERENCE = functools.partial(attend, BORDERS, "reference")


@functools.cache
def with_gradients(run):
    """Returns a compiled function of arrays and cotangents: results and gradients."""

    def call(arrays, cotangents):
        results, pullback = jax.vjp(run, *arrays)
        return *jax.tree.leaves(results), *pullback(cotangents)

    return jax.jit(call)


def in_float64(run, *trees):
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), trees)
        return jax.tree.map(np.asarray, with_gradients(run)(*wide))


def compare(actual, expected, dtype, values):
    for i, (mine, right) in enumerate(zip(actual, expected, strict=True)):
        tolerance = TOLERANCES[dtype]
        allowed = tolerance.forward if i < values else tolerance.gradient
        error = rms_relative_error(mine, right)
        assert error <= allowed, f"result {i} is off by {error:.1e} > {allowed:.0e}"


def check(run, gates, dtype, **shape):
    """Compares with the reference in float64, which is compared with each sequence alone."""
    reference = REFERENCE
    if "borders" in shape:
        reference = functools.partial(attend, shape["borders"], "reference")
    arrays, cotangents = make(gates, dtype, **shape)
    actual = with_gradients(run)(arrays, cotangents)
    compare(actual, in_float64(reference, arrays, cotangents), dtype, 3)


@pytest.mark.parametrize("implementation", PORTABLE)
def test_each_sequence_alone(implementation):
    """Also the tokens after the last border; an empty sequence returns its initial state."""
    run = jax.jit(attend, static_argnums=1)
    for borders in (BORDERS, np.array([0, 0, 33, 64, 64, 75], np.int32)):
        for gates in ("typical", "mixed"):
            arrays, _ = make(gates, borders=borders)
            out, *finals = run(borders, implementation, *arrays)
            *tokens, first, last = map(np.asarray, arrays)
            for n, (start, end) in enumerate(zip(borders, [*borders[1:], TOKENS], strict=True)):
                q, k, v, forward, backward = (x[:, start:end] for x in tokens)
                states = [None, None]
                if n < len(first):
                    states = [first[n : n + 1], last[n : n + 1]]
                one, after = numpy_gla(q, k, v, forward, states[0])
                other, before = numpy_gla(q, k, v, backward, states[1], reverse=True)
                pairs = [(out[:, start:end], one + other)] if end > start else []
                if n < len(first):
                    pairs += [(finals[0][n], after[0]), (finals[1][n], before[0])]
                for mine, right in pairs:
                    assert rms_relative_error(mine, right) <= TOLERANCES["float32"].forward


@pytest.mark.parametrize(
    ("implementation", "dtype", "widths"),
    [
        # Rows of heads that are computed one group after the other, each with its states.
        ("xla_chunked", "float32", {"heads": 4, "key_width": 128}),
        ("xla_unrolled", "bfloat16", {}),
    ],
)
def test_gradients(implementation, dtype, widths):
    run = functools.partial(attend, BORDERS, implementation)
    for gates in ("typical", "mixed"):
        check(run, gates, dtype, **widths)


def test_one_direction_without_states():
    """Borders may be traced, and mapped: one program serves any of the same number."""
    arrays = make("mixed", tokens=40)[0][:4]
    borders = jnp.array([[0, 4, 40], [0, 37, 38]])

    @functools.partial(jax.jit, static_argnums=1)
    def run(borders, implementation):
        options = {"reverse": True, "cu_seqlens": borders, "implementation": implementation}
        out, pullback = jax.vjp(functools.partial(gla, **options), *arrays)
        return out, *pullback(out)

    actual = jax.vmap(lambda borders: run(borders, "xla_chunked"))(borders)
    for i in range(2):
        compare([x[i] for x in actual], run(borders[i], "reference"), "float32", 1)


@pytest.mark.parametrize("implementation", PORTABLE)
def test_states_of_both_directions(implementation):
    """A row is one sequence, with states of each scan: two halves are the whole."""
    inputs = random_inputs(0, batch=2, tokens=40, heads=2, key_width=4, value_width=6)
    states = inputs.initial_state, inputs.initial_state[:, ::-1]
    run = jax.jit(
        functools.partial(
            bidirectional_gla, return_final_states=True, implementation=implementation
        )
    )
    out, finals = run(*inputs[:5], initial_states=states)
    forward, after = numpy_gla(*inputs[:4], states[0])
    backward, before = numpy_gla(*inputs[:3], inputs.log_decay_bwd, states[1], reverse=True)
    for mine, right in ((out, forward + backward), (finals[0], after), (finals[1], before)):
        assert rms_relative_error(mine, right) <= TOLERANCES["float32"].forward


# Kernels.


def test_interpreted_sequences():
    """One launch is enough for decays that are mild as promised."""
    borders = np.array([0, 3, 3, 20], np.int32)
    run = functools.partial(attend, borders, NAME, min_log_decay=-1.0)
    with interpret():
        check(run, "mild", "float32", borders=borders, tokens=22, heads=1)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_interpreted_strong_decays(dtype):
    """Values are shared by two programs, and each direction has its own."""
    launch = KernelConfig(value_block=16, split_directions=True)
    config = Config(launch, launch, launch)
    run = functools.partial(attend, BORDERS, NAME, config=config)
    with interpret():
        check(run, "mixed", dtype, value_width=20)


def test_sequences_lower_for_cuda():
    shapes = jax.eval_shape(functools.partial(make, dtype="bfloat16"))
    borders = jax.ShapeDtypeStruct(BORDERS.shape, "int32")

    def run(borders, arrays, cotangents):
        return jax.vjp(functools.partial(attend, borders, None), *arrays)[1](cotangents)

    traced = jax.jit(run).trace(borders, *shapes)
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert all(name in text for name in ("gla_forward", "gla_backward"))


def test_sequences_take_whole_programs():
    """Their number is that for images of their mean size; tokens are not split further."""
    spec = GlaSpec(
        batch=1, tokens=8192, heads=3, key_width=32, value_width=64,
        dtype=jnp.dtype("bfloat16"), decay_dtype=jnp.dtype("bfloat16"), scale=1.0,
        bidirectional=True, sequences=2,
    )  # fmt: skip
    config = pallas_triton.heuristic(spec)
    assert {x.segments for x in (config.forward, config.training, config.backward)} == {1}
    assert len(list(pallas_triton.candidates(spec))) > 1
    launch = KernelConfig(segments=2)
    with pytest.raises(NotImplementedError, match="config with segments=1, got 2"):
        attend(BORDERS, NAME, *make()[0], config=Config(launch, launch, launch))


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("gates", ["typical", "mixed"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sequences_on_a_gpu(dtype, gates):
    """Many of all lengths, some empty; the last one leaves tokens over."""
    lengths = np.random.default_rng(0).integers(0, 90, 40)
    borders = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    shape = {"heads": 3, "key_width": 32, "value_width": 64, "tokens": int(borders[-1]) + 37}
    check(functools.partial(attend, borders, NAME), gates, dtype, borders=borders, **shape)


# The mixer.


def check_mixer(implementation, dtype, strength):
    inputs, cotangent = make_mixer((1, TOKENS, 2, 8), dtype, strength=strength)
    run = functools.partial(vig_mixer, heads=2, cu_seqlens=BORDERS)
    actual = with_gradients(functools.partial(run, implementation=implementation))
    reference = functools.partial(run, implementation="reference")
    expected = in_float64(reference, tuple(inputs), cotangent)
    compare(actual(tuple(inputs), cotangent), expected, dtype, 1)


def test_mixer():
    check_mixer("xla_chunked", "float32", 1.0)


@pytest.mark.slow
def test_interpreted_mixer():
    with interpret():
        check_mixer(NAME, "float32", 3000.0)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("strength", [1.0, 3000.0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_mixer_on_a_gpu(dtype, strength):
    check_mixer(NAME, dtype, strength)


# Single tokens.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_steps_are_the_scan(dtype):
    inputs = random_inputs(
        0, batch=2, tokens=6, heads=2, key_width=4, value_width=6, gates="mixed", dtype=dtype
    )
    arrays, state = inputs[:4], inputs.initial_state

    @jax.jit
    def steps(arrays, state):
        def step(state, token):
            out, state = gla_step(*token, state)
            return state, out

        state, out = jax.lax.scan(step, state, [x.swapaxes(0, 1) for x in arrays])
        return out.swapaxes(0, 1), state

    out, final = steps(arrays, state)
    assert out.dtype == arrays[0].dtype
    assert final.dtype == jnp.float32
    expected = numpy_gla(*arrays, state)
    assert rms_relative_error(out, expected[0]) <= TOLERANCES[dtype].forward
    assert rms_relative_error(final, expected[1]) <= TOLERANCES[dtype].forward


# Messages.


@pytest.mark.parametrize(
    ("borders", "kind", "message"),
    [
        ([0, 5], TypeError, "must be a JAX or numpy array, got list"),
        (np.array([0.0, 5.0]), TypeError, "must be integers, got float64: cast to int32"),
        (np.array([0]), ValueError, r"N \+ 1 >= 2 elements, got shape \(1,\)"),
        (np.array([0, 76]), ValueError, "from 0 up to at most the 75 tokens"),
        (np.array([1, 75]), ValueError, "from 0 up"),
        (np.array([0, 9, 8]), ValueError, "from 0 up"),
    ],
)
def test_borders_are_checked(unchecked, borders, kind, message):
    arrays, _ = make()
    with pytest.raises(kind, match=message):
        gla(*arrays[:4], cu_seqlens=borders)


def test_borders_need_one_row(unchecked):
    arrays = [jnp.concatenate([x, x]) for x in make()[0][:5]]
    with pytest.raises(ValueError, match="a batch of 2: reshape the arrays"):
        bidirectional_gla(*arrays, cu_seqlens=BORDERS)


def test_mosaic_refuses_sequences():
    with pytest.raises(NotImplementedError, match="one sequence each, no cu_seqlens"):
        gla(*make()[0][:4], cu_seqlens=BORDERS, implementation="pallas_mosaic_gpu")


def test_states_are_checked(unchecked):
    *arrays, first, last = make()[0]
    with pytest.raises(ValueError, match=r"initial_states\[1\] must have shape \[sequences, heads"):
        bidirectional_gla(*arrays, initial_states=(first, last[1:]), cu_seqlens=BORDERS)
    with pytest.raises(TypeError, match="must be a pair of arrays"):
        bidirectional_gla(*arrays, initial_states=first)
    with pytest.raises(ValueError, match="exchange excludes return_final_states, cu_seqlens"):
        bidirectional_gla(
            *arrays, return_final_states=True, cu_seqlens=BORDERS, exchange=lambda *_: None
        )


def test_steps_are_checked():
    step = inspect.unwrap(kernels_pallas.gla_step)
    q, v, state = jnp.ones((1, 2, 4)), jnp.ones((1, 2, 6)), jnp.ones((1, 2, 4, 6))
    with pytest.raises(ValueError, match="must have three axes"):
        step(q[None], q, v, -q, state)
    with pytest.raises(ValueError, match=r"state must have shape \(1, 2, 4, 6\)"):
        step(q, q, v, -q, state[0])
    with pytest.raises(TypeError, match="v must have the type of q"):
        step(q, q, v.astype(jnp.bfloat16), -q, state)
