"""Necks of detectors against golden values of mmdet and detectron2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from tests.golden_seg import last, numbered, relative_error
from vig_jax.heads.fpn import FPN
from vig_jax.heads.simple_pyramid import SimplePyramid
from vig_jax.models.parameter_groups import path_of

TOLERANCE = {"float32": 2e-5, "float64": 1e-9}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def check_trees(actual, expected, tolerance):
    names, found = ([path_of(p) for p, _ in jax.tree_util.tree_leaves_with_path(t)]
                    for t in (expected, actual))  # fmt: skip
    assert names == found
    leaves = zip(names, jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True)
    for name, x, other in leaves:
        assert relative_error(x, other, 1e-3) < tolerance, name


def step(module, params, inputs, cotangents):
    def run(params, inputs):
        return module.apply({"params": params}, inputs)

    out, pull = jax.vjp(run, params, inputs)
    return out, pull(tuple(cotangents))


def check(golden, prefix, library, module, inputs, dtype):
    tolerance = TOLERANCE[dtype]
    params = golden_det.tree(golden.below(f"{prefix}_w."), dtype)
    cotangents = [jnp.asarray(last(x), dtype)
                  for x in numbered(golden.arrays, f"{prefix}_cotangent")]  # fmt: skip
    run = jax.jit(lambda *x: step(module, *x))
    maps, (gradients, by_input) = run(params, inputs, cotangents)
    expected = list(numbered(golden.arrays, f"{prefix}_{library}_out"))
    for x, other in zip(maps, expected, strict=True):
        assert relative_error(x, last(other)) < tolerance
    return gradients, by_input


def test_fpn(dtype):
    golden = golden_det.load("necks")
    inputs = [jnp.asarray(last(x), dtype) for x in numbered(golden.arrays, "fpn_in")]
    module = FPN(golden.facts["fpn"]["out_channels"])
    gradients, by_input = check(golden, "fpn", "mm", module, inputs, dtype)
    expected = golden_det.tree(golden.below("fpn_grad_w."), np.float64)
    check_trees(gradients, expected, TOLERANCE[dtype])
    for x, other in zip(by_input, numbered(golden.arrays, "fpn_grad_in"), strict=True):
        assert relative_error(x, last(other)) < TOLERANCE[dtype]


def test_simple_pyramid(dtype):
    golden = golden_det.load("necks")
    module = SimplePyramid(golden.facts["sfp"]["out_channels"])
    x = jnp.asarray(last(golden.arrays["sfp_ln_in"]), dtype)
    gradients, by_input = check(golden, "sfp_ln", "d2", module, x, dtype)
    expected = golden_det.tree(golden.below("sfp_ln_d2_grad_w."), np.float64)
    check_trees(gradients, expected, TOLERANCE[dtype])
    assert relative_error(by_input, last(golden.arrays["sfp_ln_d2_grad_in"])) < TOLERANCE[dtype]


def test_initial_values():
    sizes = [(8, 16), (4, 32), (2, 64), (1, 64)]
    maps = [jnp.zeros((1, side, side, width)) for side, width in sizes]
    params = jax.jit(FPN(64).init)(jax.random.key(0), maps)["params"]
    kernel = params["lateral_convs_2"]["conv"]["kernel"]
    bound = (6 / (64 + 64)) ** 0.5
    assert 0.95 * bound < np.abs(kernel).max() <= bound
    assert not params["fpn_convs_0"]["conv"]["bias"].any()


def test_the_pyramid_is_half_precise_where_asked():
    x = jnp.zeros((1, 4, 6, 8), jnp.bfloat16)
    module = SimplePyramid(4, jnp.bfloat16)
    params = jax.eval_shape(module.init, jax.random.key(0), x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    for out in jax.eval_shape(module.apply, params, x):
        assert out.dtype == jnp.bfloat16


def test_maps_of_other_sizes_are_refused():
    maps = [jnp.zeros((1, side, side, 2)) for side in (8, 4, 3, 1)]
    with pytest.raises(ValueError, match="it must have half the size, rounded up"):
        jax.eval_shape(FPN(4).init, jax.random.key(0), maps)
