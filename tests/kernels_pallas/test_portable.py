"""Programs of portable operators, and of a batch whose size is a symbol."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from kernels_pallas import bidirectional_gla, depthwise_conv, gla, implementations, swiglu
from kernels_pallas.core.arg_specs import MODEL
from kernels_pallas.core.dispatch import observe
from kernels_pallas.core.launch import LAUNCH
from kernels_pallas.core.resize import resize_bilinear
from kernels_pallas.operators import OPERATORS
from kernels_pallas.testing import TOLERANCES, rms_relative_error

BRANCHES = {"platform_index", "pallas_call", LAUNCH}
LOOPS_AND_BRANCHES = {"scan", "while", "cond"}
operators = pytest.mark.parametrize("operator", OPERATORS)


def small_case(operator):
    """Returns the largest of the small calls, in float32."""
    small = [case for case in OPERATORS[operator].cases if MODEL not in case.tags]
    return max(small, key=lambda case: case.bytes).astype("float32")


def primitives(run, *arrays):
    """Returns the names of all operations of a traced call, nested ones included."""
    names = set()

    def visit(value):
        if isinstance(value, core.ClosedJaxpr):
            visit(value.jaxpr)
        elif isinstance(value, core.Jaxpr):
            for equation in value.eqns:
                names.add(equation.primitive.name)
                visit(list(equation.params.values()))
        elif isinstance(value, tuple | list):
            for x in value:
                visit(x)

    visit(jax.make_jaxpr(run)(*arrays))
    return names


def assert_equal(actual, expected):
    for mine, right in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert rms_relative_error(mine, right) <= TOLERANCES["float32"].forward


@operators
def test_portable_programs(operator):
    """They have no kernels and no branches by platform, whatever the call names."""
    case = small_case(operator)
    arrays = case.arrays()
    named = case.bind(OPERATORS[operator].function, implementation="pallas_triton")
    default = case.bind(OPERATORS[operator].function)
    with implementations("portable"):
        assert not primitives(named, *arrays) & BRANCHES
        actual = jax.jit(named)(*arrays)
    assert_equal(actual, jax.jit(default)(*arrays))


@pytest.mark.parametrize("operator", ["gla", "bidirectional_gla", "vig_mixer"])
def test_unrolled_programs(operator):
    """They have neither loops nor branches nor flips."""
    case = small_case(operator)
    run = case.bind(OPERATORS[operator].function)
    with implementations("xla_unrolled", "portable"):
        names = primitives(run, *case.args.values())
    assert "dot_general" in names
    assert not names & {*LOOPS_AND_BRANCHES, "rev", "platform_index"}


@operators
def test_a_symbolic_batch(operator):
    """Exports every portable form once for all sizes of a batch."""
    case = small_case(operator)
    function = OPERATORS[operator].function
    table = observe(case.bind(function), *case.args.values()).table
    expected, arrays = None, case.arrays()
    (batch,) = jax.export.symbolic_shape("b")
    batched = case.batched or {next(iter(case.args))}
    shapes = [
        jax.ShapeDtypeStruct((batch, *x.shape[1:]) if name in batched else x.shape, x.dtype)
        for name, x in case.args.items()
    ]
    for name in [name for name in table if not name.startswith("pallas_")]:
        run = jax.jit(case.bind(function, implementation=name))
        actual = jax.export.export(run)(*shapes).call(*arrays)
        expected = run(*arrays) if expected is None else expected
        assert_equal(actual, expected)
    default = jax.export.export(jax.jit(case.bind(function)))(*shapes)  # kernels need numbers
    assert "b" in str(default.in_avals[0].shape[0])


def test_the_context_is_a_part_of_compiled_programs():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 6, 5, 4)), "float32")
    kernel = jnp.ones((3, 3, 1, 4))
    traces = []

    @jax.jit
    def run(x):
        traces.append(1)
        return depthwise_conv(x, kernel)

    outside = run(x)
    with implementations("portable"):
        assert_equal(run(x), outside)
        with implementations("reference"):
            run(x)
    run(x)
    assert len(traces) == 3
    with implementations("portable"):
        assert "conv_general_dilated" in primitives(run, x)


def test_names_are_tried_in_order_and_skipped_where_an_operator_lacks_them():
    x = jnp.ones((1, 5, 1, 4))
    run = functools.partial(gla, x, x, x, -x)
    with implementations("xla_unrolled"):
        assert not primitives(run) & LOOPS_AND_BRANCHES
        assert {"platform_index", LAUNCH} <= primitives(swiglu, x)  # as without the context
    with implementations("reference", "xla_unrolled"):
        assert "scan" in primitives(run)


def test_a_config_of_other_implementations_is_left_out():
    case = small_case("swiglu")
    call = observe(case.bind(swiglu), *case.args.values())
    config = call.table["pallas_triton"].module.heuristic(call.spec, None)
    with implementations("portable"):
        jax.eval_shape(case.bind(swiglu, config=config), *case.args.values())


@pytest.mark.parametrize(
    ("names", "message"),
    [((), "name at least one implementation"), (("portible",), "did you mean 'portable'")],
)
def test_wrong_names(names, message):
    with pytest.raises(ValueError, match=message), implementations(*names):
        pass


@pytest.mark.parametrize("reverse", [False, True])
def test_unrolled_over_many_chunks(reverse):
    """States of nine chunks, some of which forget all; and states at both ends."""
    generator = np.random.default_rng(1)
    q, k, v, g, state = (
        jnp.asarray(generator.standard_normal(shape), "float32")
        for shape in [(2, 270, 1, 4)] * 4 + [(2, 1, 4, 4)]
    )
    decay = jnp.where(g > 2.5, -jnp.inf, -(jnp.abs(g) ** 5) / 10)
    options = {"initial_state": state, "reverse": reverse, "return_final_state": True}
    runs = [
        jax.jit(functools.partial(gla, **options, implementation=name))(q, k, v, decay)
        for name in ("xla_unrolled", "reference")
    ]
    assert_equal(*runs)
    both = functools.partial(bidirectional_gla, q, k, v, decay, decay[:, ::-1])
    assert_equal(both(implementation="xla_unrolled"), both(implementation="reference"))


def test_maps_are_enlarged_without_negative_pads():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 3, 4, 2)), "float32")
    run = functools.partial(resize_bilinear, size=(6, 12))
    assert "pad" in primitives(run, x)
    expected = run(x)
    with implementations("portable"):
        assert "pad" not in primitives(run, x)
        np.testing.assert_array_equal(run(x), expected)
