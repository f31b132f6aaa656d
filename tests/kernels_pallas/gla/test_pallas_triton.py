"""The CUDA kernels: interpreted and lowered without a GPU, and run where there is a GPU."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import bidirectional_gla, gla
from kernels_pallas.core.launch import MAX_PROGRAMS, is_interpreting
from kernels_pallas.gla import pallas_triton
from kernels_pallas.gla.arg_specs import WORKLOADS
from kernels_pallas.gla.pallas_triton import scan
from kernels_pallas.gla.pallas_triton.config import Config, KernelConfig
from kernels_pallas.gla.pallas_triton.shapes import Problem
from kernels_pallas.gla.spec import GlaSpec
from kernels_pallas.testing import (
    GATE_KINDS,
    TOLERANCES,
    Inputs,
    interpret,
    launch_equations,
    launches,
    random_inputs,
    rms_relative_error,
)
from kernels_pallas.testing.numpy_gla import numpy_gla
from kernels_pallas.testing.op_test import OpTest, on_gpu

NAME = "pallas_triton"
slow = functools.partial(pytest.param, marks=pytest.mark.slow)
GOLDEN = pathlib.Path(__file__).parent / "golden"


def make(batch, tokens, heads, key_width, value_width, **options):
    return random_inputs(
        tokens,
        batch=batch,
        tokens=tokens,
        heads=heads,
        key_width=key_width,
        value_width=value_width,
        **options,
    )


def spec_of(inputs, **options):
    batch, tokens, heads, key_width = inputs.q.shape
    return GlaSpec(
        batch=batch,
        tokens=tokens,
        heads=heads,
        key_width=key_width,
        value_width=inputs.v.shape[3],
        dtype=inputs.q.dtype,
        decay_dtype=inputs.log_decay_fwd.dtype,
        scale=key_width**-0.5,
        **options,
    )


def kernels(spec, config=None):
    """Returns the Triton implementation as a function of the arrays."""

    def run(q, k, v, *others):
        count = 2 if spec.bidirectional else 1
        log_decays, states = others[:count], others[count:] or None
        out, finals = pallas_triton.run(spec, q, k, v, log_decays, states, config=config)
        return (out, *finals) if spec.return_final_state else out

    return run


def both(run):
    """Returns a compiled function: output and gradients of both directions."""

    def call(inputs):
        out, pullback = jax.vjp(run, *inputs[:5])
        return out, *pullback(inputs.cotangent.astype(out.dtype))

    return jax.jit(call)


def single(run):
    """Returns a compiled function: output, final state and gradients of one direction."""

    def call(inputs):
        (out, state), pullback = jax.vjp(run, *inputs[:4], inputs.initial_state)
        cotangent = inputs.cotangent.astype(out.dtype), inputs.initial_state[:, :, ::-1] * 0.3
        return out, state, *pullback(cotangent)

    return jax.jit(call)


def widened(inputs):
    return Inputs(*(jnp.asarray(x, jnp.float32) for x in inputs))


def compare(actual, expected, tolerance, values, label):
    for i, (mine, reference) in enumerate(zip(actual, expected, strict=True)):
        allowed = tolerance.forward if i < values else tolerance.gradient
        error = rms_relative_error(mine, reference)
        assert error <= allowed, f"{label}: result {i} is off by {error:.2e} > {allowed:.0e}"


def check_both(run, inputs, label):
    expected = both(functools.partial(bidirectional_gla, implementation="reference"))(
        widened(inputs)
    )
    compare(both(run)(inputs), expected, TOLERANCES[inputs.q.dtype.name], 1, label)


def check_single(run, inputs, label, reverse):
    def reference(q, k, v, log_decay, state):
        options = {"initial_state": state, "reverse": reverse, "return_final_state": True}
        return gla(q, k, v, log_decay, implementation="reference", **options)

    expected = single(reference)(widened(inputs))
    compare(single(run)(inputs), expected, TOLERANCES[inputs.q.dtype.name], 2, label)


def check_config(config, inputs, label):
    """Checks a tiling in both directions at once, and in each from a state."""
    spec = spec_of(inputs, bidirectional=True)
    check_both(kernels(spec, config), inputs, label)
    for reverse in (False, True):
        options = {"reverse": reverse, "has_initial_state": True, "return_final_state": True}
        spec = spec_of(inputs, **options)
        check_single(kernels(spec, config), inputs, f"{label} reverse={reverse}", reverse)


def uniform(**options):
    launch = KernelConfig(**options)
    return Config(launch, launch, launch)


def test_interpreted_both_directions():
    inputs = make(1, 37, 2, 16, 16, gates="mixed", dtype="bfloat16")
    spec = spec_of(inputs, bidirectional=True)
    with interpret():
        actual = both(kernels(spec))(inputs)
    expected = both(functools.partial(bidirectional_gla, implementation="reference"))(
        widened(inputs)
    )
    compare(actual, expected, TOLERANCES["bfloat16"], 1, "mixed")


def test_interpreted_segments_odd_widths_and_states():
    inputs = make(1, 41, 1, 5, 20, gates="typical")
    options = {"reverse": True, "has_initial_state": True, "return_final_state": True}
    config = uniform(segments=2, value_block=16)
    with interpret():
        actual = single(kernels(spec_of(inputs, **options), config))(inputs)

    def reference(q, k, v, log_decay, state):
        options = {"initial_state": state, "reverse": True, "return_final_state": True}
        return gla(q, k, v, log_decay, implementation="reference", **options)

    compare(actual, single(reference)(widened(inputs)), TOLERANCES["float32"], 2, "typical")


def mild(seed, tokens=18, key_width=3, value_width=5):
    """Returns small inputs with log-decays above -1, for which one launch is enough."""
    shape = {"batch": 1, "tokens": tokens, "heads": 1}
    shape |= {"key_width": key_width, "value_width": value_width}
    return random_inputs(seed, gates="mild", **shape)


kernels_scan = functools.partial(gla, min_log_decay=-1.0, implementation=NAME)


def with_gradients(run):
    """Returns a compiled function: output and gradients of one direction."""

    def call(inputs):
        out, pullback = jax.vjp(run, *inputs[:4])
        return out, *pullback(inputs.cotangent)

    return jax.jit(call)


def check_mild(actual, inputs, label):
    expected = with_gradients(functools.partial(gla, implementation="reference"))(inputs)
    compare(actual, expected, TOLERANCES["float32"], 1, label)


@pytest.mark.parametrize("width", [1, 17])
def test_interpreted_mild_decays_as_promised(width):
    inputs = mild(0, key_width=width, value_width=width)
    with interpret():
        actual = with_gradients(kernels_scan)(inputs)
    check_mild(actual, inputs, "mild")


def test_interpreted_vmap_and_checkpoint():
    each = [mild(0), mild(1)]
    stacked = Inputs(*(jnp.stack(arrays) for arrays in zip(*each, strict=True)))
    with interpret():
        actual = jax.jit(jax.vmap(with_gradients(jax.checkpoint(kernels_scan))))(stacked)
    for i, inputs in enumerate(each):
        check_mild([x[i] for x in actual], inputs, f"number {i}")


@pytest.mark.parametrize("reverse", [False, True])
def test_interpreted_halves_are_one_pass(reverse):
    inputs = mild(0)
    first, second = ([x[:, part] for x in inputs[:4]] for part in (slice(0, 9), slice(9, None)))
    if reverse:
        first, second = second, first
    with interpret():
        run = jax.jit(functools.partial(kernels_scan, reverse=reverse, return_final_state=True))
        out_first, state = run(*first, initial_state=inputs.initial_state)
        out_second, state = run(*second, initial_state=state)
        whole, final = run(*inputs[:4], initial_state=inputs.initial_state)
    parts = (out_second, out_first) if reverse else (out_first, out_second)
    assert rms_relative_error(jnp.concatenate(parts, axis=1), whole) <= 1e-6
    assert rms_relative_error(state, final) <= 1e-6


def check_golden(path):
    with np.load(path) as data:
        golden = {field: np.swapaxes(data[field], 1, 2) for field in data.files}
    names = ("q", "k", "v", "gk_f", "gk_b")
    arguments = [jnp.asarray(golden[name], "float32") for name in names]
    out, pullback = jax.vjp(functools.partial(bidirectional_gla, implementation=NAME), *arguments)
    assert rms_relative_error(out, golden["o_f"] + golden["o_b"]) <= 2e-5
    gradients = pullback(jnp.asarray(golden["do"], "float32"))
    for name, mine in zip(names, gradients, strict=True):
        assert rms_relative_error(mine, golden[f"d_{name}"]) <= 2e-4, name


def test_interpreted_golden():
    with interpret():
        check_golden(GOLDEN / "t33_odd.npz")


def check_nothing_outside_is_read_or_written(strength):
    """Runs kernels on columns of larger arrays, which are NaN elsewhere.

    The array that gradients are written to is 7 elsewhere, before and after.
    """
    tokens, heads, key_width, value_width, rank = 37, 2, 8, 16, 5
    starts = {"q": 0, "k": 24, "v": 48, "features": 88}  # with gaps behind each
    widths = {"q": 16, "k": 16, "v": 32, "features": rank}
    spec = GlaSpec(
        batch=1,
        tokens=tokens,
        heads=heads,
        key_width=key_width,
        value_width=value_width,
        dtype=jnp.dtype("bfloat16"),
        decay_dtype=jnp.dtype("bfloat16"),
        scale=0.3,
        bidirectional=True,
        gate_normalizer=16.0,
    )
    normal = np.random.default_rng(0).standard_normal
    inside = np.zeros((1, tokens + 13, 100), bool)
    for name, start in starts.items():
        inside[:, :tokens, start : start + widths[name]] = True
    values, weights = normal(inside.shape), strength * normal((rank, 32))
    cotangent = normal((1, tokens, heads, value_width))

    @jax.jit
    def run(array, kernel, bias, grad_out, into):
        q, k, v = (scan.Columns(array, starts[name]) for name in ("q", "k", "v"))
        gates = [scan.Gates(array, starts["features"], rank, kernel, bias, at) for at in (0, 16)]
        inputs, config = scan.ScanInputs(q, k, v, tuple(gates)), KernelConfig()
        [out], _, states = scan.forward(spec, config, inputs, chunk_states=True)
        grads, grad_logits = scan.backward_in_place(spec, config, inputs, grad_out, states, into)
        return out, grads, grad_logits[:, :tokens, :32]

    def given(outside):
        kernel, bias = np.full((rank + 2, 40), outside), np.full(40, outside)
        kernel[:rank, :32], bias[:32] = weights, 0.5
        grad_out = np.full((1, tokens + 13, heads, value_width), outside)
        grad_out[:, :tokens] = cotangent
        arrays = (
            np.where(inside, values, outside),
            kernel,
            bias,
            grad_out,
            np.full(values.shape, 7),
        )
        return [jnp.asarray(x, "bfloat16") for x in arrays]

    out, grads, grad_logits = run(*given(np.nan))
    for mine, theirs in zip((out, grads, grad_logits), run(*given(0.0)), strict=True):
        assert np.isfinite(np.asarray(mine, np.float32)).all()
        np.testing.assert_array_equal(mine, theirs)
    inside[:, :, starts["features"] :] = False  # their gradient is made of that of the logits
    np.testing.assert_array_equal(np.asarray(grads)[~inside], 7)
    assert (np.asarray(grads)[inside] != 7).any()


def test_interpreted_nothing_outside_is_read_or_written():
    with interpret():
        check_nothing_outside_is_read_or_written(1.0)


def test_interpreting_ends():
    with interpret():
        assert is_interpreting()
    assert not is_interpreting()


def lowered(run, *arguments):
    traced = jax.jit(run).trace(*arguments)
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def outputs(run, *arguments):
    """Returns the output shapes of every kernel launch in a call, in order."""
    equations = launch_equations(jax.make_jaxpr(run)(*arguments).jaxpr)
    return [[x.aval.shape for x in equation.outvars] for equation in equations]


def shapes(batch, tokens, heads, key_width, value_width, dtype, decay_dtype):
    keys = jax.ShapeDtypeStruct((batch, tokens, heads, key_width), dtype)
    values = jax.ShapeDtypeStruct((batch, tokens, heads, value_width), dtype)
    decays = jax.ShapeDtypeStruct(keys.shape, decay_dtype)
    return keys, keys, values, decays, decays


FORWARD = ("gla_forward", "gla_forward_strong_decays")
BACKWARD = ("gla_backward", "gla_backward_strong_decays")


class TestBidirectionalGla(OpTest):
    op = "bidirectional_gla"
    portable = ("xla_chunked",)
    forward_launches = FORWARD
    gradient_launches = FORWARD + BACKWARD
    remat_launches = FORWARD + FORWARD + BACKWARD
    # test_gla.py compares portable implementations for more decays, and this file interpreted
    # kernels.
    test_portable = test_interpreted = test_vmap = None

    def cases(self, *, model):
        names = {"tiny_odd", "vig_t_224", "vig_t_1024", "vig_h_t_224_stage4", "lm_2048"}
        return [case for case in super().cases(model=model) if case.name in names]

    def formula(self, case, q, k, v, log_decay_fwd, log_decay_bwd):
        forward, _ = numpy_gla(q, k, v, log_decay_fwd)
        backward, _ = numpy_gla(q, k, v, log_decay_bwd, reverse=True)
        return forward + backward


class TestGla(TestBidirectionalGla):
    op = "gla"

    def formula(self, case, q, k, v, log_decay):
        return numpy_gla(q, k, v, log_decay)[0]


@pytest.mark.parametrize(
    ("shape", "dtype", "decay_dtype"),
    [
        ((1, 70, 2, 256, 100), "bfloat16", "float32"),
        slow((1, 17, 3, 24, 40), "float32", "float32"),
        slow((1, 1, 1, 1, 256), "bfloat16", "bfloat16"),
        slow((1, 70, 2, 256, 100), "float32", "float32"),
    ],
)
def test_odd_shapes_lower_for_cuda(shape, dtype, decay_dtype):
    arguments = shapes(*shape, dtype, decay_dtype)
    run = functools.partial(bidirectional_gla, implementation=NAME)

    def run_single(q, k, v, log_decay, state):
        options = {"return_final_state": True, "reverse": True, "implementation": NAME}
        return gla(q, k, v, log_decay, initial_state=state, **options)

    state = jax.ShapeDtypeStruct((*shape[:1], shape[2], *shape[3:]), jnp.float32)
    for call, arrays in ((gradient(run), arguments), (run_single, (*arguments[:4], state))):
        text = lowered(call, *arrays)
        assert all(name in text for name in launches(call, *arrays))


def gradient(run):
    """Returns a function that computes the gradients, with v as the cotangent."""
    return lambda *arguments: jax.vjp(run, *arguments)[1](arguments[2])


def test_under_checkpoint_only_the_recomputed_forward_pass_stores_states():
    arguments = shapes(2, 196, 6, 32, 64, "bfloat16", "bfloat16")
    run = functools.partial(bidirectional_gla, implementation=NAME)
    forward, training = outputs(run, *arguments), outputs(gradient(run), *arguments)
    assert training[: len(forward)] != forward  # states before each chunk
    assert outputs(gradient(jax.checkpoint(run)), *arguments) == forward + training
    mapped = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in arguments]
    found = outputs(jax.vmap(gradient(jax.checkpoint(run))), *mapped)
    assert [len(x) for x in found] == [len(x) for x in forward + training]


@pytest.mark.parametrize(("least", "passes"), [(-3.0, 1), (-4.0, 2)])
def test_a_promise_of_mild_decays_saves_the_second_pass(least, passes):
    arguments = shapes(2, 196, 6, 32, 64, "bfloat16", "bfloat16")  # chunks of 16: up to 60 in all
    run = functools.partial(bidirectional_gla, min_log_decay=least, implementation=NAME)
    assert launches(run, *arguments).total() == passes


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="needs a machine without a GPU")
def test_by_name_it_traces_anywhere_and_runs_on_cuda_only():
    inputs = make(1, 20, 1, 16, 16)
    run = jax.jit(functools.partial(bidirectional_gla, implementation=NAME))
    assert run.trace(*inputs[:5]).out_info.shape == inputs.v.shape
    with pytest.raises(NotImplementedError, match="cannot be lowered for cpu"):
        run(*inputs[:5])


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"dtype": "float16"}, "bfloat16 or float32"),
        ({"key_width": 257}, "at most 256"),
        ({"dtype": "float32", "decay_dtype": "bfloat16"}, "float32 log-decays"),
    ],
)
def test_calls_that_are_not_served(options, reason):
    shape = {"batch": 1, "tokens": 9, "heads": 1, "key_width": 4, "value_width": 4} | options
    inputs = random_inputs(0, **shape)
    with pytest.raises(NotImplementedError, match=reason):
        bidirectional_gla(*inputs[:5], implementation=NAME)


def shared_memory(problem, config, itemsize):
    """Returns the bytes that a backward kernel's pipeline needs for its inputs and states."""
    keys, values = problem.key_block, problem.value_block
    chunk = config.chunk * (3 * keys + 2 * values)
    return config.num_stages * itemsize * (chunk + keys * values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", WORKLOADS)
def test_the_heuristic_serves_every_workload(name, dtype):
    shape, dtype = WORKLOADS[name], jnp.dtype(dtype)
    sizes = (shape.batch, shape.tokens, shape.heads, shape.key_width, shape.value_width)
    for bidirectional in {False, shape.op == "bidirectional_gla"}:
        spec = GlaSpec(*sizes, dtype, dtype, 1.0, bidirectional=bidirectional)
        assert pallas_triton.supports(spec) is None
        config = pallas_triton.heuristic(spec)
        for kernel in (config.forward, config.training, config.backward):
            problem = Problem.from_spec(spec, kernel)
            assert problem.chunk * problem.chunks * problem.segments >= shape.tokens
            assert kernel.segments == 1 or shape.tokens >= 512 * kernel.segments
            split = kernel.split_directions and bidirectional
            programs = problem.programs * (1 + split)
            assert programs <= MAX_PROGRAMS
            if shape.tokens >= 1024 and shape.batch > 1:
                assert programs >= 96  # about the number of multiprocessors of an A100
            assert shared_memory(problem, kernel, dtype.itemsize) <= 164 * 1024  # of an A100


def test_training_and_backward_share_their_chunks():
    with pytest.raises(ValueError, match="same chunk"):
        Config(training=KernelConfig(chunk=16), backward=KernelConfig(chunk=32))


GPU_CASES = [
    *(
        (dtype, gates, (2, 197, 2, 32, 64))
        for dtype in ("bfloat16", "float32")
        for gates in GATE_KINDS
    ),
    *(
        ("bfloat16", "mixed", shape)
        for shape in ((1, 1, 1, 5, 7), (1, 17, 2, 24, 40), (2, 63, 1, 60, 100), (2, 49, 3, 16, 32))
    ),
    ("float32", "mixed", (1, 75, 1, 100, 24)),
    ("bfloat16", "typical", (1, 130, 2, 128, 256)),
    ("bfloat16", "mixed", (1, 784, 2, 16, 32)),
    ("bfloat16", "typical", (1, 1, 1, 16, 16)),
    ("bfloat16", "mixed", (64, 3136, 3, 16, 32)),
    ("bfloat16", "typical", (8, 520, 16, 64, 128)),
    ("bfloat16", "typical", (1, 3136, 1, 16, 32)),
    ("bfloat16", "mixed", (1, 4096, 1, 32, 64)),
    ("float32", "mixed", (1, 1, 1, 1, 1)),
    ("bfloat16", "mixed", (1, 70, 1, 256, 256)),
    ("float32", "mixed", (1, 70, 1, 256, 256)),
    ("float32", "mixed", (1, 70, 1, 130, 24)),
    ("bfloat16", "typical", (70000, 2, 1, 16, 16)),
]


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "gates", "shape"), GPU_CASES, ids=str)
def test_on_a_gpu(dtype, gates, shape):
    inputs = make(*shape, gates=gates, dtype=dtype)
    check_config(None, inputs, gates)


@on_gpu
@pytest.mark.gpu
def test_many_tokens_on_a_gpu():
    """Compares with the chunked implementation: the reference takes a step for each token."""
    inputs = make(1, 65536, 1, 16, 16, gates="typical", dtype="bfloat16")
    portable = functools.partial(bidirectional_gla, implementation="xla_chunked")
    kernels = functools.partial(bidirectional_gla, implementation=NAME)
    compare(
        both(kernels)(inputs), both(portable)(widened(inputs)), TOLERANCES["bfloat16"], 1, "many"
    )


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "config",
    [
        uniform(split_directions=True, num_warps=2),
        uniform(chunk=32, num_warps=4, segments=3),
        uniform(chunk=64, num_warps=4, num_stages=2, value_block=32),
    ],
    ids=str,
)
def test_tilings_on_a_gpu(config):
    inputs = make(2, 197, 2, 32, 64, gates="mixed", dtype="bfloat16")
    check_config(config, inputs, str(config))


@on_gpu
@pytest.mark.gpu
def test_transformations_on_a_gpu():
    inputs = make(2, 75, 2, 16, 32, gates="mixed", dtype="bfloat16")
    run = functools.partial(bidirectional_gla, implementation=NAME)
    expected = both(run)(inputs)
    jax.tree.map(np.testing.assert_array_equal, both(run)(inputs), expected)
    jax.tree.map(np.testing.assert_array_equal, both(jax.checkpoint(run))(inputs), expected)
    stacked = Inputs(*(jnp.stack([x, x[::-1]]) for x in inputs))
    mapped = jax.jit(jax.vmap(both(run)))(stacked)
    for mine, reference in zip(mapped, expected, strict=True):
        np.testing.assert_array_equal(mine[0], reference)
        np.testing.assert_array_equal(mine[1], reference[::-1])
    donated = jax.jit(run, donate_argnums=2)(*inputs[:2], inputs.v.copy(), *inputs[3:5])
    np.testing.assert_array_equal(donated, expected[0])
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    split = jax.sharding.PartitionSpec("data")
    mapped_run = jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split, check_vma=False)
    np.testing.assert_array_equal(jax.jit(mapped_run)(*inputs[:5]), expected[0])


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("strength", [1.0, 3000.0])
def test_nothing_outside_is_read_or_written_on_a_gpu(strength):
    check_nothing_outside_is_read_or_written(strength)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_a_promise_of_mild_decays_on_a_gpu(dtype):
    inputs = make(2, 197, 2, 32, 64, gates="mild", dtype=dtype)
    run = functools.partial(bidirectional_gla, min_log_decay=-1.0, implementation=NAME)
    check_both(run, inputs, "mild")


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.npz")), ids=lambda path: path.stem)
def test_golden_on_a_gpu(path):
    check_golden(path)
