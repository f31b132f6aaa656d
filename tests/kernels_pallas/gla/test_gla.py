"""Values, gradients, states and transformations of every portable implementation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import IMPLEMENTATIONS, bidirectional_gla, gla
from kernels_pallas.gla.arg_specs import WORKLOADS
from kernels_pallas.testing import (
    GATE_KINDS,
    TOLERANCES,
    Inputs,
    random_inputs,
    rms_relative_error,
)
from kernels_pallas.testing.numpy_gla import numpy_gla

# The CUDA kernels need a GPU or long compilations: test_pallas_triton.py.
PORTABLE = [name for name in IMPLEMENTATIONS if not name.startswith("pallas_")]
implementations = pytest.mark.parametrize("implementation", PORTABLE)
fast_implementations = pytest.mark.parametrize(
    "implementation", [name for name in PORTABLE if name != "reference"]
)
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


def make(seed=0, batch=2, tokens=40, heads=2, key_width=8, value_width=12, **options) -> Inputs:
    shape = {"batch": batch, "tokens": tokens, "heads": heads}
    widths = {"key_width": key_width, "value_width": value_width}
    return random_inputs(seed, **shape, **widths, **options)


def assert_close(actual, expected, tolerance, what):
    error = rms_relative_error(actual, expected)
    assert error <= tolerance, f"{what}: RMS-relative error {error:.2e} > {tolerance:.0e}"


@functools.cache
def single(implementation, reverse):
    """Returns a compiled function: output, final state, gradients of a weighted sum of both."""

    def run(inputs, state_cotangent):
        def loss(q, k, v, log_decay, initial_state):
            out, state = gla(
                q,
                k,
                v,
                log_decay,
                initial_state=initial_state,
                reverse=reverse,
                return_final_state=True,
                implementation=implementation,
            )
            wide = state.dtype
            value = jnp.vdot(out.astype(wide), inputs.cotangent.astype(wide))
            return value + jnp.vdot(state, state_cotangent), (out, state)

        arguments = (*inputs[:4], inputs.initial_state)
        gradient = jax.grad(loss, argnums=range(5), has_aux=True)
        gradients, (out, state) = gradient(*arguments)
        return out, state, gradients

    return jax.jit(run)


@functools.cache
def both(implementation):
    """Returns a compiled function: the output of both directions and its gradients."""

    def run(inputs):
        def loss(*arguments):
            out = bidirectional_gla(*arguments, implementation=implementation)
            wide = jnp.promote_types(out.dtype, jnp.float32)
            return jnp.vdot(out.astype(wide), inputs.cotangent.astype(wide)), out

        gradients, out = jax.grad(loss, argnums=range(5), has_aux=True)(*inputs[:5])
        return out, gradients

    return jax.jit(run)


def widened(inputs):
    return Inputs(*(np.asarray(x, np.float64) for x in inputs))


def check_single(implementation, reverse, inputs, tolerance, label):
    """Compares a call and its gradients with a float64 run of the reference."""
    state_cotangent = np.asarray(inputs.initial_state)[:, :, ::-1] * 0.3
    actual = single(implementation, reverse)(inputs, state_cotangent)
    with jax.enable_x64(True):
        expected = single("reference", reverse)(widened(inputs), np.float64(state_cotangent))
        expected = jax.tree.map(np.asarray, expected)
    assert actual[0].dtype == inputs.v.dtype
    assert_close(actual[0], expected[0], tolerance.forward, f"{label} out")
    assert_close(actual[1], expected[1], tolerance.forward, f"{label} final state")
    names = ("q", "k", "v", "log_decay", "initial_state")
    for name, mine, reference in zip(names, actual[2], expected[2], strict=True):
        assert_close(mine, reference, tolerance.gradient, f"{label} gradient of {name}")


def check_both(implementation, inputs, tolerance, label):
    out, gradients = both(implementation)(inputs)
    with jax.enable_x64(True):
        expected = jax.tree.map(np.asarray, both("reference")(widened(inputs)))
    assert out.dtype == inputs.v.dtype
    assert_close(out, expected[0], tolerance.forward, f"{label} out")
    names = ("q", "k", "v", "log_decay_fwd", "log_decay_bwd")
    for name, mine, reference in zip(names, gradients, expected[1], strict=True):
        assert_close(mine, reference, tolerance.gradient, f"{label} gradient of {name}")


# Compiling takes nearly all of this suite's time: cases share shapes, and gates run in one program.
@implementations
@pytest.mark.parametrize(
    ("tokens", "reverse"),
    [
        (1, False),
        (2, True),
        pytest.param(17, False, marks=pytest.mark.slow),
        pytest.param(49, True, marks=pytest.mark.slow),
        (63, False),
        (64, True),
        (65, False),
        (65, True),
        pytest.param(196, True, marks=pytest.mark.slow),
        (197, False),
        (784, True),
    ],
)
def test_values_match_a_numpy_loop(implementation, reverse, tokens):
    options = {"reverse": reverse, "return_final_state": True, "implementation": implementation}
    run = jax.jit(functools.partial(gla, **options))
    for gates in GATE_KINDS if tokens <= 65 else ("typical", "mixed"):
        inputs = make(tokens=tokens, gates=gates)
        out, state = run(*inputs[:4], initial_state=inputs.initial_state)
        expected = numpy_gla(*inputs[:4], inputs.initial_state, reverse=reverse)
        assert_close(out, expected[0], 1e-5, f"{gates} out")
        assert_close(state, expected[1], 1e-5, f"{gates} final state")


@directions
def test_the_reference_matches_a_numpy_loop_in_float64(reverse):
    with jax.enable_x64(True):
        inputs = make(tokens=50, gates="mixed", dtype="float64")
        options = {"reverse": reverse, "return_final_state": True, "implementation": "reference"}
        out, state = gla(*inputs[:4], initial_state=inputs.initial_state, **options)
        expected = numpy_gla(*inputs[:4], inputs.initial_state, reverse=reverse)
        assert out.dtype == state.dtype == jnp.float64
        assert_close(out, expected[0], 1e-13, "out")
        assert_close(state, expected[1], 1e-13, "final state")


@fast_implementations
@pytest.mark.parametrize(("tokens", "reverse"), [(1, False), (65, True)])
def test_gradients_of_one_direction(implementation, reverse, tokens):
    for gates in GATE_KINDS:
        inputs = make(seed=tokens, tokens=tokens, gates=gates)
        check_single(implementation, reverse, inputs, TOLERANCES["float32"], gates)


@implementations
@pytest.mark.parametrize("widths", [(1, 1), (24, 40), (60, 100)], ids=str)
def test_odd_widths(implementation, widths):
    for gates in ("typical", "mixed"):
        inputs = make(tokens=49, batch=1, key_width=widths[0], value_width=widths[1], gates=gates)
        out = gla(*inputs[:4], implementation=implementation)
        assert_close(out, numpy_gla(*inputs[:4])[0], 1e-5, gates)


@fast_implementations
def test_gradients_at_odd_widths(implementation):
    for gates in ("typical", "mixed"):
        inputs = make(tokens=49, key_width=5, value_width=7, gates=gates)
        check_both(implementation, inputs, TOLERANCES["float32"], gates)


@fast_implementations
@pytest.mark.parametrize("tokens", [2, 97])
def test_both_directions(implementation, tokens):
    for gates in GATE_KINDS:
        inputs = make(seed=tokens, tokens=tokens, gates=gates)
        check_both(implementation, inputs, TOLERANCES["float32"], gates)


@fast_implementations
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_types(implementation, dtype):
    with jax.enable_x64(dtype == "float64"):
        for gates in GATE_KINDS:
            inputs = make(gates=gates, dtype=dtype)
            check_both(implementation, inputs, TOLERANCES[dtype], f"{dtype} {gates}")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_reference_keeps_types(dtype):
    inputs = make(gates="mixed", dtype=dtype)
    check_both("reference", inputs, TOLERANCES[dtype], dtype)


@fast_implementations
def test_log_decays_may_be_narrow_too(implementation):
    inputs = make(tokens=40, dtype="bfloat16", decay_dtype="bfloat16", gates="mixed")
    assert both(implementation)(inputs)[1][3].dtype == jnp.bfloat16
    check_both(implementation, inputs, TOLERANCES["bfloat16"], "bfloat16 decays")


@fast_implementations
@pytest.mark.parametrize("gates", [pytest.param("typical", marks=pytest.mark.slow), "mixed"])
def test_long_sequences(implementation, gates):
    inputs = make(batch=1, tokens=3136, heads=1, key_width=16, value_width=32, gates=gates)
    check_both(implementation, inputs, TOLERANCES["float32"], gates)


@implementations
@pytest.mark.parametrize("name", ["tiny", "tiny_ragged", "tiny_odd"])
def test_tiny_workloads(implementation, name):
    shape = WORKLOADS[name]
    inputs = make(
        batch=shape.batch,
        tokens=shape.tokens,
        heads=shape.heads,
        key_width=shape.key_width,
        value_width=shape.value_width,
    )
    out = bidirectional_gla(*inputs[:5], implementation=implementation)
    forward, _ = numpy_gla(*inputs[:4])
    backward, _ = numpy_gla(*inputs[:3], inputs.log_decay_bwd, reverse=True)
    assert_close(out, forward + backward, 1e-5, name)


@implementations
@directions
def test_the_state_hands_over(implementation, reverse):
    inputs = make(tokens=74, gates="mixed")
    run = functools.partial(
        gla, reverse=reverse, return_final_state=True, implementation=implementation
    )
    whole, final = run(*inputs[:4], initial_state=inputs.initial_state)
    head, tail = ([x[:, part] for x in inputs[:4]] for part in (slice(0, 37), slice(37, None)))
    first, second = (tail, head) if reverse else (head, tail)
    out_first, state = run(*first, initial_state=inputs.initial_state)
    out_second, state = run(*second, initial_state=state)
    parts = (out_second, out_first) if reverse else (out_first, out_second)
    assert_close(jnp.concatenate(parts, axis=1), whole, 1e-6, "out")
    assert_close(state, final, 1e-6, "final state")


@implementations
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_initial_state_may_be_narrow(implementation, dtype):
    inputs = make(tokens=3)
    state = inputs.initial_state.astype(dtype)
    run = functools.partial(gla, *inputs[:4], implementation=implementation)
    wide = run(initial_state=state.astype("float32"))
    np.testing.assert_array_equal(run(initial_state=state), wide)
    assert jax.grad(lambda state: run(initial_state=state).sum())(state).dtype == dtype


@implementations
def test_the_first_decay_acts_on_the_initial_state(implementation):
    inputs = make(tokens=3)
    shut = inputs.log_decay_fwd.at[:, 0].set(-jnp.inf)
    with_state = gla(
        *inputs[:3], shut, initial_state=inputs.initial_state, implementation=implementation
    )
    without = gla(*inputs[:3], shut, implementation=implementation)
    np.testing.assert_array_equal(with_state, without)


@directions
def test_the_default_under_jit(reverse):
    """Implementations are branches of one program, so they must return the same types."""
    inputs = make()
    run = functools.partial(gla, reverse=reverse)
    expected = numpy_gla(*inputs[:4], reverse=reverse)
    assert_close(jax.jit(run)(*inputs[:4]), expected[0], 1e-5, "out")
    out, state = jax.jit(functools.partial(run, return_final_state=True))(*inputs[:4])
    assert_close(out, expected[0], 1e-5, "out")
    assert_close(state, expected[1], 1e-5, "final state")


@implementations
def test_scale(implementation):
    inputs = make()
    plain = gla(*inputs[:4], implementation=implementation)
    scaled = gla(*inputs[:4], scale=0.5, implementation=implementation)
    assert_close(scaled, plain * (0.5 * 8**0.5), 1e-6, "out")


@fast_implementations
def test_vmap_and_its_gradient(implementation):
    stacked = [make(seed=i, gates=gates) for i, gates in enumerate(("typical", "mixed"))]
    stacked = Inputs(*(jnp.stack(arrays) for arrays in zip(*stacked, strict=True)))
    out, gradients = jax.jit(jax.vmap(both(implementation)))(stacked)
    for i in range(2):
        one, one_gradients = both(implementation)(Inputs(*(x[i] for x in stacked)))
        assert_close(out[i], one, 1e-6, f"out {i}")
        for mine, reference in zip(gradients, one_gradients, strict=True):
            assert_close(mine[i], reference, 5e-6, f"gradient {i}")


@fast_implementations
def test_remat_changes_nothing(implementation):
    inputs = make(gates="mixed")
    run = jax.checkpoint(functools.partial(bidirectional_gla, implementation=implementation))

    @jax.jit
    def gradients(*arguments):
        return jax.vjp(run, *arguments)[1](inputs.cotangent)

    kept = both(implementation)(inputs)[1]
    for mine, reference in zip(gradients(*inputs[:5]), kept, strict=True):
        assert_close(mine, reference, 1e-6, "gradient")


@implementations
def test_donated_arguments(implementation):
    inputs = make()
    run = functools.partial(gla, implementation=implementation)
    expected = np.asarray(run(*inputs[:4]))
    out = jax.jit(run, donate_argnums=2)(*inputs[:2], inputs.v.copy(), inputs.log_decay_fwd)
    assert_close(out, expected, 1e-6, "out")


# JAX does not promise that an exported CUDA kernel stays valid, so the check must be disabled.
_KERNELS = [
    jax.export.DisabledSafetyCheck.custom_call(name)
    for name in ("__gpu$xla.gpu.triton", "triton_kernel_call_ffi")
]


@pytest.mark.parametrize(
    ("implementation", "platforms", "disabled_checks"),
    [
        (None, ("cpu", "tpu"), ()),
        (None, ("cuda",), _KERNELS),
        (None, ("cpu", "cuda", "tpu"), _KERNELS),
        ("xla_chunked", ("cpu", "cuda", "tpu"), ()),
        ("reference", ("cpu", "cuda", "tpu"), ()),
    ],
)
def test_exports(implementation, platforms, disabled_checks):
    inputs = make()
    run = jax.jit(functools.partial(bidirectional_gla, implementation=implementation))
    export = jax.export.export(run, platforms=platforms, disabled_checks=disabled_checks)
    exported = export(*inputs[:5])
    assert ("triton" in exported.mlir_module()) == (implementation is None and "cuda" in platforms)
    assert exported.vjp().platforms == platforms
    if "cpu" in platforms:
        assert_close(exported.call(*inputs[:5]), run(*inputs[:5]), 1e-6, "out")


def test_memory_grows_linearly_and_keeps_no_state_per_token():
    def temporary_bytes(tokens):
        q = jax.ShapeDtypeStruct((1, tokens, 2, 32), jnp.float32)
        v = jax.ShapeDtypeStruct((1, tokens, 2, 64), jnp.float32)
        run = jax.jit(
            jax.grad(lambda *x: gla(*x, implementation="xla_chunked").sum(), argnums=range(4))
        )
        return run.lower(q, q, v, q).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary_bytes(1024), temporary_bytes(4096)
    assert long <= 4.5 * short
    assert long < 4096 * 2 * 32 * 64 * 4 / 2  # half of a state per token
