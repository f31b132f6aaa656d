"""Kernels that find their references by name."""

import jax
import jax.numpy as jnp
import numpy as np

from kernels_pallas.core import triton
from kernels_pallas.core.named_refs import launch
from kernels_pallas.testing import interpret, launch_equations

VECTOR = jax.ShapeDtypeStruct((4,), jnp.float32)


def run(kernel, inputs, outputs, **options):
    return launch(
        kernel,
        name="by_name",
        programs=1,
        inputs=inputs,
        outputs=outputs,
        num_warps=1,
        num_stages=1,
        **options,
    )


def add(ref):
    index = (jnp.arange(4),)
    x, y = (triton.load(part, index) for part in ref["pair"])
    triton.store(ref["sum"], index, x + y)
    if ref["difference"] is not None:
        triton.store(ref["difference"], index, x - y)
    triton.store(ref["products"][1], index, x * y)
    triton.store(ref["products"][0], index, x * x)


def test_trees_of_references():
    x, y = jnp.arange(4.0), jnp.full(4, 3.0)
    outputs = {"sum": VECTOR, "difference": None, "products": [VECTOR, VECTOR]}
    with interpret():
        results = run(add, {"pair": (x, y)}, outputs)
        more = run(add, {"pair": (x, y)}, outputs | {"difference": VECTOR})
    assert results["difference"] is None
    np.testing.assert_array_equal(more["difference"], x - y)
    for found in (results, more):
        np.testing.assert_array_equal(found["sum"], x + y)
        np.testing.assert_array_equal(found["products"], [x * x, x * y])


def test_an_array_that_occurs_twice_is_passed_once():
    outputs = {"sum": VECTOR, "difference": VECTOR, "products": [VECTOR, VECTOR]}

    def call(x, y, twice):
        return run(add, {"pair": (x, x if twice else y)}, outputs)

    for twice, count in ((True, 1), (False, 2)):
        jaxpr = jax.make_jaxpr(call, static_argnums=2)(VECTOR, VECTOR, twice)
        [equation] = launch_equations(jaxpr.jaxpr)
        assert len(equation.invars) == count


def test_outputs_start_from_arrays_inputs_or_not():
    def kernel(ref):
        first = (jnp.arange(2),)
        triton.store(ref["given"], first, triton.load(ref["x"], first) + 1.0)
        triton.store(ref["other"], first, triton.load(ref["x"], (first[0] + 2,)))

    x, other = jnp.arange(4.0), jnp.full(4, 7.0)
    with interpret():
        results = run(
            kernel,
            {"x": x},
            {"unused": None, "given": VECTOR, "other": VECTOR},
            start_from={"given": x, "other": other},
        )
    np.testing.assert_array_equal(results["given"], [1, 2, 2, 3])
    np.testing.assert_array_equal(results["other"], [2, 3, 7, 7])
