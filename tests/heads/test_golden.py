"""Heads and neck of segmentation against the golden values of mmsegmentation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_seg
from vig_jax.heads.fcn import FCNHead
from vig_jax.heads.pyramid import Feature2Pyramid
from vig_jax.heads.upernet import UPerHead
from vig_jax.models.parameter_groups import path_of

FORWARD = {"float32": 2e-5, "float64": 1e-12}


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def heads(facts):
    dropout = facts.get("dropout", 0.0)
    decode = UPerHead(facts["num_classes"], facts["channels"], dropout)
    return decode, FCNHead(facts["num_classes"], facts["aux_channels"], dropout)


def maps_of(golden, prefix, dtype):
    arrays = golden_seg.numbered(golden.arrays, prefix)
    return [jnp.asarray(golden_seg.last(x), dtype) for x in arrays]


def check(actual, expected, tolerance):
    assert golden_seg.relative_error(actual, golden_seg.last(expected)) < tolerance


SMALLEST_SCALE = 1e-3


def check_tree(actual, expected, tolerance):
    """A bias before batch statistics has a gradient of zero, a sum that cancels up to rounding.

    Biases of deconvolutions are therefore compared on the scale of the kernel's gradient.
    """
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    flat = {path_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(expected)}
    for (name, other), x in zip(flat.items(), jax.tree.leaves(actual), strict=True):
        kernel = flat.get(f"{name.removesuffix('bias')}kernel", other)
        scale = np.abs(kernel).max() if "upsample" in name else 0.0
        error = golden_seg.relative_error(x, other, max(scale, SMALLEST_SCALE))
        assert error < tolerance, name


@pytest.mark.parametrize("case", golden_seg.facts("heads_forward")["pyramids"])
def test_heads_in_evaluation_mode(case, dtype):
    golden = golden_seg.load("heads_forward")
    decode, auxiliary = heads(golden.facts)
    variables = golden_seg.variables(golden, dtype)
    maps = maps_of(golden, f"input/{case}/", dtype)

    @jax.jit
    def run(variables, maps):
        mine = {name: tree["decode_head"] for name, tree in variables.items()}
        others = {name: tree["auxiliary_head"] for name, tree in variables.items()}
        return (
            decode.apply(mine, maps),
            decode.apply(mine, maps, method="features")[..., ::8],
            decode.apply(mine, maps[-1], False, method="pooled"),
            auxiliary.apply(others, maps[2]),
        )

    names = ("logits_decode", "features_decode", "ppm_bottleneck", "logits_aux")
    for name, actual in zip(names, run(variables, maps), strict=True):
        assert actual.dtype == dtype
        check(actual, golden.arrays[f"{case}/{name}"], FORWARD[dtype])


NECK = {"float32": 1e-4, "float64": 1e-10}


@pytest.mark.parametrize("case", golden_seg.facts("neck")["cases"])
def test_neck(case, dtype):
    golden = golden_seg.load("neck")
    train = case.endswith("_train")
    variables = golden_seg.variables(golden, dtype, f"{case}/")
    maps = maps_of(golden, f"input/{case}/", dtype)
    cotangents = maps_of(golden, f"cotangent/{case}/", dtype)

    def run(params, maps):
        rest = {"batch_stats": variables["batch_stats"]}
        return Feature2Pyramid().apply(
            {"params": params} | rest, maps, train, mutable=["batch_stats"]
        )

    @jax.jit
    def step(params, maps):
        out, pull, moved = jax.vjp(run, params, maps, has_aux=True)
        return out, pull(tuple(cotangents)), moved

    out, (gradients, by_map), moved = step(variables["params"], maps)
    for i, (actual, gradient) in enumerate(zip(out, by_map, strict=True)):
        check(actual, golden.arrays[f"output/{case}/{i}"], NECK[dtype])
        check(gradient, golden.arrays[f"grad_input/{case}/{i}"], NECK[dtype])
    expected = golden_seg.tree(golden.below(f"grad/{case}/"), np.float64)
    check_tree(gradients, expected, NECK[dtype])
    if train:
        after = golden_seg.tree(golden.below(f"buffer_after/{case}/"), np.float64)
        check_tree(moved["batch_stats"], after, NECK[dtype])
