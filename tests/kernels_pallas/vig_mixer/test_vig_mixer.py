"""The mixer: implementations against the definition in float64, and the CUDA kernels."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas import vig_mixer
from kernels_pallas.core.arg_specs import Case, normal, on_device
from kernels_pallas.gla.pallas_triton.config import Config, KernelConfig
from kernels_pallas.testing import (
    TOLERANCES,
    interpret,
    launch_equations,
    rms_relative_error,
)
from kernels_pallas.testing.numpy_gla import numpy_gla
from kernels_pallas.testing.op_test import OpTest, on_gpu
from kernels_pallas.vig_mixer import arg_specs, pallas_triton
from kernels_pallas.vig_mixer.pallas_triton import backward, forward
from kernels_pallas.vig_mixer.pallas_triton.config import BACKWARD, FORWARD, BlendConfig
from kernels_pallas.vig_mixer.pallas_triton.rows import RowLoop
from kernels_pallas.vig_mixer.spec import MixerInputs, MixerSpec

NAME = "pallas_triton"
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def outputs_of(width):
    """Returns a width O that is not D."""
    return width + 8


def make(shape, dtype, *, strength=1.0, rank=16):
    """Returns arrays and a cotangent for `shape` B, T, H, V; decay logits of size `strength`."""
    batch, tokens, heads, value_width = shape
    width = heads * value_width
    generator = np.random.default_rng(tokens)

    def normal(*shape, dtype=dtype, mean=0.0, deviation=1.0):
        return on_device(mean + deviation * generator.standard_normal(shape), dtype)

    wide = "float64" if dtype == "float64" else "float32"
    inputs = MixerInputs(
        projected=normal(batch, tokens, 3 * width + rank),
        local=normal(batch, tokens, width),
        gate_bias=normal(width, dtype=wide),
        decay_kernel=normal(rank, width, deviation=strength / rank**0.5),
        decay_bias=normal(width, dtype=wide),
        scan_scale=normal(value_width, dtype=wide, mean=1.0, deviation=0.3),
        local_scale=normal(value_width, dtype=wide, mean=1.0, deviation=0.3),
        out_kernel=normal(width, outputs_of(width), deviation=width**-0.5),
    )
    return inputs, normal(batch, tokens, outputs_of(width))


def spec_of(shape, dtype, activation=None, rank=16):
    batch, tokens, heads, value_width = shape
    return MixerSpec(
        batch=batch,
        tokens=tokens,
        heads=heads,
        width=heads * value_width,
        rank=rank,
        out_features=outputs_of(heads * value_width),
        dtype=jnp.dtype(dtype),
        scale=(value_width // 2) ** -0.5,
        gate_normalizer=16.0,
        epsilon=1e-6,
        activation=activation,
    )


def kernels(spec, config=None):
    """Returns the Triton implementation as a function of the arrays."""
    return lambda *arrays: pallas_triton.run(spec, MixerInputs(*arrays), config=config)


def with_gradients(run):
    """Returns a compiled function that computes the result and the gradients of all arrays."""

    def call(inputs, cotangent):
        out, pullback = jax.vjp(run, *inputs)
        return out, *pullback(cotangent)

    return jax.jit(call)


@functools.cache
def definition(heads, activation):
    """Returns the definition with its gradients; compiled once, for all inputs of a shape."""
    options = {"heads": heads, "activation": activation, "implementation": "reference"}
    return with_gradients(functools.partial(vig_mixer, **options))


def check(run, inputs, cotangent, heads, activation):
    """Compares the result, with and without gradients, and the gradients with float64."""
    tolerance = TOLERANCES[inputs.projected.dtype.name]
    actual = with_gradients(run)(inputs, cotangent)
    alone = jax.jit(run)(*inputs)
    for mine, given in zip((alone, *actual), (cotangent, cotangent, *inputs), strict=True):
        assert mine.dtype == given.dtype
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(x, np.float64)) for x in (*inputs, cotangent)]
        expected = definition(heads, activation)(wide[:-1], wide[-1])
        assert expected[0].dtype == jnp.float64
        expected = [np.asarray(x) for x in expected]
    for what, mine in (("alone", alone), ("with gradients", actual[0])):
        error = rms_relative_error(mine, expected[0])
        assert error <= tolerance.forward, f"result {what}: {error:.2e}"
    for name, mine, theirs in zip(MixerInputs._fields, actual[1:], expected[1:], strict=True):
        error = rms_relative_error(mine, theirs)
        assert error <= tolerance.gradient, f"gradient of {name}: {error:.2e}"


def small_case(name, shape, rank, strength=1.0, **options):
    """Returns a case for `shape` B, T, H, V; logits of the decays have the size of `strength`."""
    inputs, _ = jax.eval_shape(functools.partial(make, shape, "bfloat16", rank=rank))
    draws = {"decay_kernel": normal(strength / rank**0.5), "scan_scale": normal(0.3, mean=1.0)}
    kwargs = {"heads": shape[2], **options}
    batched = frozenset({"projected", "local"})
    return Case(name, inputs._asdict(), kwargs, draws, batched=batched)


PLAIN = small_case("plain", (2, 17, 2, 6), 5, scale=0.3, gate_normalizer=5.0, epsilon=1e-2)
STRONG = small_case("strong", (1, 37, 1, 24), 16, 3000.0, activation="silu")
FORWARD_LAUNCHES = ("gla_forward", "gla_forward_strong_decays", "vig_mixer_blend")
BACKWARD_LAUNCHES = ("vig_mixer_blend_backward", "gla_backward", "gla_backward_strong_decays")


class TestVigMixer(OpTest):
    op = "vig_mixer"
    portable = ("xla_chunked", "xla_unrolled")
    forward_launches = FORWARD_LAUNCHES
    gradient_launches = FORWARD_LAUNCHES + BACKWARD_LAUNCHES
    remat_launches = FORWARD_LAUNCHES + FORWARD_LAUNCHES + BACKWARD_LAUNCHES
    # XLA's products are not equal to the bit under vmap: see test_transformations_on_a_gpu.
    test_transformations_on_gpu = None

    def cases(self, *, model):
        names = {"vig_t_224", "vig_t_1024"}
        if model:
            return [case for case in super().cases(model=True) if case.name in names]
        return [PLAIN, STRONG]

    def formula(self, case, projected, local, gate_bias, kernel, decay_bias, *others):
        scan_scale, local_scale, out_kernel = others
        options = {"gate_normalizer": 16.0, "epsilon": 1e-6, "scale": None, **case.kwargs}

        def heads(x):
            return x.reshape(*x.shape[:2], options["heads"], -1)

        def norm(x, scale):
            mean = (x**2).mean(axis=-1, keepdims=True)
            return x / np.sqrt(mean + options["epsilon"]) * scale

        half = local.shape[2] // 2
        starts = [half, 2 * half, 4 * half, 6 * half]
        q, k, v, gate, features = np.split(projected, starts, axis=-1)
        decays = -np.logaddexp(0, -(features @ kernel + decay_bias)) / options["gate_normalizer"]
        scans = [
            numpy_gla(*map(heads, (q, k, v, x)), reverse=reverse, scale=options["scale"])[0]
            for x, reverse in ((decays[..., :half], False), (decays[..., half:], True))
        ]
        gate = heads(1 / (1 + np.exp(-(gate + gate_bias))))
        scan, local = norm(sum(scans), scan_scale), norm(heads(local), local_scale)
        out = gate * scan + (1 - gate) * local
        out = out / (1 + np.exp(-out)) if "activation" in options else out
        return out.reshape(*projected.shape[:2], -1) @ out_kernel

    @pytest.mark.parametrize(
        ("small", "dtype"),
        [
            (PLAIN, "float64"),
            (PLAIN, "bfloat16"),
            (STRONG, "float32"),
            slow(PLAIN, "float32"),
            slow(PLAIN, "float16"),
            slow(STRONG, "float64"),
            slow(STRONG, "bfloat16"),
        ],
        ids=lambda value: getattr(value, "name", value),
    )
    def test_portable(self, small, dtype):
        """The default takes the portable implementation here."""
        case = small.astype(dtype)
        with jax.enable_x64(dtype == "float64"):
            self.check(case, case.bind(vig_mixer))

    def test_interpreted(self):
        """Other kernels run without gradients: they split the directions and store no states."""
        case = PLAIN.astype("float32")
        run = case.bind(vig_mixer, implementation=NAME)
        arrays, cotangents = self.inputs(case)
        with interpret():
            out = jax.jit(run)(*arrays)
            self.check(case, run)
        expected, _ = self.expected(case, arrays, cotangents)
        self.compare([out], [expected], TOLERANCES["float32"].forward, "output alone")

    @pytest.mark.slow
    def test_vmap(self):
        super().test_vmap()


def uniform(*, chunk=16, segments=1, split_directions=False):
    """Returns tilings of one kind; the backward pass never splits directions."""
    together = KernelConfig(chunk=chunk, segments=segments)
    launch = KernelConfig(chunk=chunk, segments=segments, split_directions=split_directions)
    return Config(forward=launch, training=launch, backward=together)


@pytest.mark.parametrize(
    ("dtype", "shape", "rank", "activation", "strength", "config"),
    [
        slow("float32", (1, 19, 3, 24), 5, "silu", 1.0, None),
        slow("float32", (1, 50, 1, 64), 20, None, 3000.0, {"segments": 2}),
        slow(
            "bfloat16",
            (1, 70, 2, 16),
            16,
            "silu",
            1.0,
            {"chunk": 32, "segments": 2, "split_directions": True},
        ),
        slow("bfloat16", (2, 17, 1, 24), 16, None, 3000.0, None),
        slow("float32", (1, 33, 1, 64), 20, None, 3000.0, None),
        slow("float32", (1, 1, 1, 2), 16, None, 1.0, None),
        slow("bfloat16", (1, 41, 2, 16), 16, None, 1.0, {"segments": 2, "split_directions": True}),
        slow("float32", (1, 50, 1, 16), 16, "silu", 3000.0, {"segments": 2}),
        slow("bfloat16", (1, 40, 1, 16), 16, "silu", 1.0, {"chunk": 32}),
    ],
    ids=str,
)
def test_interpreted_kernels(dtype, shape, rank, activation, strength, config):
    """Runs kernels in the interpreter; the heuristic, for `config` None, splits directions."""
    inputs, cotangent = make(shape, dtype, strength=strength, rank=rank)
    spec = spec_of(shape, dtype, activation, rank)
    config = None if config is None else uniform(**config)
    with interpret():
        check(kernels(spec, config), inputs, cotangent, shape[2], activation)


@pytest.mark.parametrize(
    ("shape", "programs", "steps"), [((1, 30, 3, 24), 3, 8), slow((2, 32, 6, 16), 3, 16)], ids=str
)
def test_programs_of_several_blocks(shape, programs, steps):
    """Rows past the last are masked; a block begins in the middle of a token's heads."""
    spec = spec_of(shape, "float32", "silu")
    inputs, _ = make(shape, "float32")
    scan = jnp.asarray(np.random.default_rng(0).standard_normal(shape), "float32")
    small = BlendConfig(programs=2, block=128)
    loop = RowLoop.from_config(spec, small)
    assert (loop.programs, loop.steps) == (programs, steps)

    def results(**options):
        with interpret():
            blend, _ = forward.forward(spec, [scan], inputs, total=True, **options)
            again, grads = backward.backward(spec, scan, inputs, inputs.local, **options)
        gate = grads.projected[..., spec.starts["gate"] : spec.starts["decay"]]
        return blend, again, grads._replace(projected=gate)

    chex.assert_trees_all_close(results(config=small), results(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "activation"), [((2, 17, 2, 16), None), ((1, 70, 3, 24), "silu")], ids=str
)
def test_the_blend_is_recomputed_to_the_bit(shape, activation):
    """The gradient of `out_kernel` belongs to the very values that it was applied to."""
    inputs, _ = make(shape, "bfloat16")
    scan = jnp.asarray(np.random.default_rng(0).standard_normal(shape), "bfloat16")
    spec = spec_of(shape, "bfloat16", activation)
    with interpret():
        expected, _ = forward.forward(spec, [scan], inputs, total=True)
        again, _ = backward.backward(spec, scan, inputs, inputs.local)
    np.testing.assert_array_equal(again, expected)


@pytest.mark.slow
def test_weights_of_the_narrow_type():
    """A model whose parameters are bfloat16 too gets gradients of that type."""
    shape = (2, 17, 2, 24)
    inputs, cotangent = make(shape, "bfloat16", strength=3000.0)
    inputs = MixerInputs(*(x.astype("bfloat16") for x in inputs))
    with interpret():
        check(kernels(spec_of(shape, "bfloat16")), inputs, cotangent, 2, None)


@pytest.mark.slow
def test_under_vmap_and_checkpoint():
    inputs, cotangent = make((2, 20, 2, 8), "float32")
    run = functools.partial(vig_mixer, heads=2)
    expected = with_gradients(run)(inputs, cotangent)
    again = with_gradients(jax.checkpoint(run))(inputs, cotangent)
    stacked = jax.tree.map(lambda x: jnp.stack([x, -x]), (inputs, cotangent))
    mapped = jax.jit(jax.vmap(with_gradients(run)))(*stacked)
    negative = with_gradients(run)(*jax.tree.map(jnp.negative, (inputs, cotangent)))
    for one, same, both, other in zip(expected, again, mapped, negative, strict=True):
        for mine, theirs in ((same, one), (both[0], one), (both[1], other)):
            assert rms_relative_error(mine, theirs) <= TOLERANCES["float32"].forward


def shapes_of(shape, dtype):
    batch, tokens, heads, value_width = shape
    width = heads * value_width
    projected, local = (
        jax.ShapeDtypeStruct((batch, tokens, n), dtype) for n in (3 * width + 16, width)
    )
    bias, scale = (jax.ShapeDtypeStruct((n,), jnp.float32) for n in (width, value_width))
    kernel, out_kernel = (
        jax.ShapeDtypeStruct(shape, dtype) for shape in ((16, width), (width, outputs_of(width)))
    )
    cotangent = jax.ShapeDtypeStruct((batch, tokens, outputs_of(width)), dtype)
    return MixerInputs(projected, local, bias, kernel, bias, scale, scale, out_kernel), cotangent


def test_no_blend_is_kept():
    """The residuals are the inputs, the scans' sum, and the states before each chunk."""
    batch, tokens, heads, value_width = shape = 2, 24, 2, 32
    inputs, _ = shapes_of(shape, "bfloat16")
    run = functools.partial(vig_mixer, heads=heads, implementation=NAME)
    kept = jax.eval_shape(lambda *arrays: jax.vjp(run, *arrays)[1], *inputs)
    chunks = 2
    states = 2 * batch * heads * chunks * (value_width // 2) * value_width
    sizes = [*(x.size for x in inputs), batch * tokens * heads * value_width, states]
    assert sorted(x.size for x in jax.tree.leaves(kept)) == sorted(sizes)


def lowered(run, *arguments):
    return jax.jit(run).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


def outputs(run, *arguments):
    """Returns the output shapes of every kernel launch in a call, in order."""
    equations = launch_equations(jax.make_jaxpr(run)(*arguments).jaxpr)
    return [[x.aval.shape for x in equation.outvars] for equation in equations]


def test_maps_over_images_lower_for_cuda():
    run = functools.partial(vig_mixer, heads=2, implementation=NAME)
    stacked = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), shapes_of((2, 17, 2, 16), "float32")
    )
    text = lowered(jax.vmap(with_gradients(jax.checkpoint(run))), *stacked)
    assert all(name in text for name in FORWARD_LAUNCHES + BACKWARD_LAUNCHES)


def test_under_checkpoint_only_the_recomputed_forward_pass_stores_states():
    inputs, cotangent = shapes_of((2, 196, 6, 64), "bfloat16")
    run = functools.partial(vig_mixer, heads=6, implementation=NAME)
    forward, training = outputs(run, *inputs), outputs(with_gradients(run), inputs, cotangent)
    assert training[: len(forward)] != forward  # states before each chunk
    found = outputs(with_gradients(jax.checkpoint(run)), inputs, cotangent)
    assert found == forward + training


def test_projections_are_neither_sliced_nor_copied():
    """Outside of the kernels no operation copies an array of tokens or joins gradients.

    Arrays of width 24 are the features of the decays and the ones after them.
    """
    inputs, cotangent = shapes_of((2, 196, 6, 64), "bfloat16")

    def text(implementation, gradients):
        run = functools.partial(vig_mixer, heads=6, implementation=implementation)
        return (
            lowered(with_gradients(run), inputs, cotangent) if gradients else lowered(run, *inputs)
        )

    touched = r"stablehlo\.(?:slice|concatenate|transpose|convert|pad|add)\b.*196"
    joined = r"stablehlo\.(?:concatenate|pad)\b.*-> tensor<2x196x(?!24x)"
    for name, expected in ((NAME, False), ("xla_chunked", True)):
        assert bool(re.search(touched, text(name, gradients=False))) == expected
        assert bool(re.search(joined, text(name, gradients=True))) == expected


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 9, 1, 66), "float32", "value width per head must be at most 64"),
        ((1, 9, 2, 8), "float64", "must be bfloat16 or float32"),
        ((0, 9, 2, 8), "float32", "nothing to launch"),
    ],
)
def test_what_the_kernels_do_not_serve_falls_through(shape, dtype, reason):
    with jax.enable_x64(dtype == "float64"):
        inputs, cotangent = make(shape, dtype)
        with pytest.raises(NotImplementedError, match=reason):
            vig_mixer(*inputs, heads=shape[2], implementation=NAME)
        assert vig_mixer(*inputs, heads=shape[2]).shape == cotangent.shape


@pytest.mark.parametrize("case", arg_specs.CASES, ids=lambda case: case.name)
def test_the_heuristic_serves_every_model(case):
    """All gradients share one array, so one program has both directions and a head's values."""
    batch, tokens, _ = case.args["local"].shape
    spec = spec_of((batch, tokens, case.kwargs["heads"], case.args["scan_scale"].size), "bfloat16")
    assert pallas_triton.supports(spec) is None
    config = pallas_triton.heuristic(spec)
    assert config.forward.split_directions
    assert config.training.split_directions
    assert not config.backward.split_directions
    assert config.backward.value_block >= spec.value_width
    for kernel in (FORWARD, BACKWARD):
        loop = RowLoop.from_config(spec, kernel)
        assert loop.rows * loop.programs * loop.steps >= spec.rows
        assert loop.programs <= kernel.programs + spec.heads
        assert loop.rows * loop.programs % spec.heads == 0


def test_a_tiling_whose_gradients_need_two_arrays_is_refused():
    inputs, cotangent = make((1, 17, 1, 16), "float32")
    launch = KernelConfig(split_directions=True)
    spec = spec_of((1, 17, 1, 16), "float32")
    run = with_gradients(kernels(spec, Config(launch, launch, launch)))
    with (
        interpret(),
        pytest.raises(ValueError, match="use value_block >= 16 and split"),
    ):
        run(inputs, cotangent)


@pytest.mark.parametrize(
    ("changed", "options", "error", "message"),
    [
        ({"projected": np.ones((9, 40))}, {}, ValueError, r"projected must .*\(1, 9, 40\), got"),
        ({"projected": np.ones((1, 9, 24))}, {}, ValueError, r"projected must .*\(1, 9, 40\)"),
        ({"decay_kernel": np.ones((16, 9))}, {}, ValueError, r"decay_kernel must .*\(16, 8\)"),
        ({"decay_kernel": np.ones(8)}, {}, ValueError, r"\[R, D\], got \(8,\)"),
        ({"local": np.ones((1, 9, 2, 4))}, {}, ValueError, r"local must have shape \[B, T, D\]"),
        ({"local": np.ones((1, 0, 8))}, {}, ValueError, r"\[B, T, D\], got \(1, 0, 8\)"),
        ({"gate_bias": np.ones(4)}, {}, ValueError, r"gate_bias must have shape \(8,\), got \(4,"),
        ({"decay_bias": np.ones(9)}, {}, ValueError, r"decay_bias must have shape \(8,\)"),
        ({"scan_scale": np.ones(8)}, {}, ValueError, r"scan_scale must have shape \(4,\)"),
        ({"local_scale": np.ones((1, 4))}, {}, ValueError, r"local_scale must have shape \(4,\)"),
        (
            {"local": np.ones((1, 9, 8), "float16")},
            {},
            TypeError,
            "of one type, got float32, float16, float32, float32: cast",
        ),
        ({"out_kernel": np.ones((9, 8))}, {}, ValueError, r"\[D, O\] for the D = 8 .*\(9, 8\)"),
        ({"out_kernel": np.ones(8)}, {}, ValueError, r"out_kernel must have shape \[D, O\]"),
        ({"out_kernel": np.ones((8, 0))}, {}, ValueError, r"\[D, O\] .* got \(8, 0\)"),
        ({"out_kernel": np.ones((8, 8), "float16")}, {}, TypeError, "out_kernel must be of one"),
        ({"gate_bias": np.ones(8, "int32")}, {}, TypeError, "gate_bias must be one of .*int32"),
        ({}, {"heads": 3}, ValueError, r"width 8 must be a multiple of 2 \* heads \(6\)"),
        ({}, {"heads": 0}, ValueError, "multiple of"),
        ({}, {"gate_normalizer": 0}, ValueError, r"gate_normalizer must be in \(0, 256\], got 0"),
        ({}, {"gate_normalizer": 257.0}, ValueError, "gate_normalizer must be in"),
        ({}, {"activation": "gelu"}, ValueError, "activation must be \"silu\" or None, got 'gelu'"),
        ({}, {"scale": jnp.ones(())}, TypeError, "scale must be a Python number or None"),
        ({}, {"implementation": "triton"}, ValueError, "did you mean 'pallas_triton'"),
    ],
    ids=str,
)
def test_errors(unchecked, changed, options, error, message):
    inputs, _ = make((1, 9, 2, 4), "float32")
    changed = {
        name: jnp.asarray(x, "float32" if x.dtype == "float64" else x.dtype)
        for name, x in changed.items()
    }
    with pytest.raises(error, match=message):
        vig_mixer(*inputs._replace(**changed), **({"heads": 2} | options))


GPU_CASES = [
    ("bfloat16", (8, 196, 6, 64), None, 1.0),  # ViG-S
    ("bfloat16", (8, 196, 6, 64), "silu", 3000.0),
    ("float32", (4, 196, 6, 64), None, 1.0),
    ("bfloat16", (2, 4096, 3, 64), None, 1.0),  # ViG-T at 1024 x 1024
    *(("bfloat16", (4, 56**2 // 4**i, 3 * 2**i, 32), None, 1.0) for i in range(4)),  # ViG-H
    ("float32", (2, 784, 6, 32), "silu", 1.0),
    ("bfloat16", (3, 197, 2, 24), "silu", 1.0),
    ("float32", (3, 61, 5, 10), None, 3000.0),
    ("bfloat16", (1, 1, 1, 2), None, 1.0),
]


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(("dtype", "shape", "activation", "strength"), GPU_CASES, ids=str)
def test_on_a_gpu(dtype, shape, activation, strength):
    inputs, cotangent = make(shape, dtype, strength=strength)
    options = {"heads": shape[2], "activation": activation}
    run = functools.partial(vig_mixer, implementation=NAME, **options)
    check(run, inputs, cotangent, **options)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize(
    "options",
    [{}, {"segments": 3, "split_directions": True}, {"chunk": 32, "segments": 2}],
    ids=str,
)
def test_tilings_on_a_gpu(options):
    config = uniform(**options)
    shape = (2, 197, 2, 64)
    inputs, cotangent = make(shape, "bfloat16", strength=100.0)
    check(kernels(spec_of(shape, "bfloat16"), config), inputs, cotangent, shape[2], None)


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(8, 196, 6, 64), (4, 784, 6, 32), (3, 77, 2, 24)], ids=str)
def test_transformations_on_a_gpu(shape):
    inputs, cotangent = make(shape, "bfloat16")
    # XLA's products with the identity are exact in any order, so that bits of kernels are compared.
    width = inputs.local.shape[2]
    inputs = inputs._replace(out_kernel=jnp.eye(width, dtype="bfloat16"))
    cotangent = cotangent[..., :width]
    run = functools.partial(vig_mixer, heads=shape[2], implementation=NAME)
    expected = with_gradients(run)(inputs, cotangent)
    for again in (run, jax.checkpoint(run)):
        results = with_gradients(again)(inputs, cotangent)
        jax.tree.map(np.testing.assert_array_equal, results, expected)
    stacked = jax.tree.map(lambda x: jnp.stack([x, -x]), (inputs, cotangent))
    mapped = jax.jit(jax.vmap(with_gradients(run)))(*stacked)
    out, grads = mapped[0][0], MixerInputs(*(x[0] for x in mapped[1:]))
    np.testing.assert_array_equal(out, expected[0])
    theirs = MixerInputs(*expected[1:])
    np.testing.assert_array_equal(grads.local, theirs.local)
    by_kernels = 3 * width  # the other columns, and sums over tokens, are products by XLA
    np.testing.assert_array_equal(
        grads.projected[..., :by_kernels], theirs.projected[..., :by_kernels]
    )
    for mine, other in zip(grads, theirs, strict=True):
        assert rms_relative_error(mine, other) <= TOLERANCES["bfloat16"].forward


@on_gpu
@pytest.mark.gpu
def test_a_pullback_can_be_called_twice():
    """The backward kernel overwrites its input; residuals that are used again are copied before."""
    inputs, cotangent = make((8, 196, 6, 64), "bfloat16")
    _, pullback = jax.vjp(functools.partial(vig_mixer, heads=6, implementation=NAME), *inputs)
    for first, second in zip(pullback(cotangent), pullback(cotangent), strict=True):
        np.testing.assert_array_equal(first, second)
