"""Segmenters under mmsegmentation's names: both ways to the bit, strictness, golden outputs."""

import chex
import jax
import numpy as np
import pytest

from tests import golden_seg
from tests.weights.dense_case import SEGMENTERS, segmenter
from vig_jax.errors import WeightsError
from vig_jax.heads.fcn import FCNHead
from vig_jax.heads.pyramid import Feature2Pyramid
from vig_jax.heads.upernet import UPerHead
from vig_jax.weights import mmseg
from vig_jax.weights.table import to_ours


@pytest.mark.parametrize("name", SEGMENTERS)
def test_round_trip_to_the_bit(name):
    model, variables = segmenter(name)
    state_dict = mmseg.from_variables(variables)
    chex.assert_trees_all_equal(mmseg.to_variables(state_dict, model), variables)
    chex.assert_trees_all_equal(
        mmseg.from_variables(mmseg.to_variables(state_dict, model)), state_dict
    )
    counters = {k for k in state_dict if k.endswith(".num_batches_tracked")}
    assert {state_dict[k].shape for k in counters} == {()}
    assert {state_dict[k].dtype for k in counters} == {np.dtype(np.int64)}
    means = {k.replace("num_batches_tracked", "running_mean") for k in counters}
    assert means == {k for k in state_dict if k.endswith("running_mean")}
    parts = {k.partition(".")[0] for k in state_dict}
    assert parts == {"backbone", "decode_head", "auxiliary_head"} | (
        {"neck"} if name == "vig_t" else set()
    )


def test_names_and_shapes_of_parameters_are_those_of_mmsegmentation():
    """All names and layouts of the heads and the neck occur in the golden training step."""
    arrays = golden_seg.load("plain_segmentor_train")
    theirs = arrays.below("param/") | arrays.below("buffer/")
    _, variables = segmenter("vig_t")
    ours = mmseg.from_variables(variables)
    names = {k for k in ours if not k.startswith("backbone.") and "num_batches" not in k}
    assert names == theirs.keys()
    assert {k: ours[k].ndim for k in names} == {k: theirs[k].ndim for k in names}


def converted(theirs, *modules):
    """Our variables of modules by name from golden arrays, through the table, as nested dicts."""
    shapes = {}
    for name, (module, inputs) in modules:
        made = jax.eval_shape(module.init, jax.random.key(0), *inputs)
        for collection, tree in made.items():
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                inner = jax.tree_util.keystr(path, simple=True, separator="/")
                shapes[f"{collection}/{name}/{inner}"] = leaf.shape
    flat = to_ours(mmseg.TABLES.plain, theirs, shapes, cure="")
    result = {name: {} for name, _ in modules}
    for path, value in flat.items():
        collection, name, *inner = path.split("/")
        node = result[name].setdefault(collection, {})
        for key in inner[:-1]:
            node = node.setdefault(key, {})
        node[inner[-1]] = value
    return result


def test_golden_heads_through_the_table():
    facts, _ = file = golden_seg.load("heads_forward")
    size = {name: facts[name] for name in ("num_classes", "channels")}
    decode = UPerHead(**size)
    auxiliary = FCNHead(facts["num_classes"], facts["aux_channels"])
    name = next(iter(facts["pyramids"]))
    maps = [golden_seg.last(x) for x in golden_seg.numbered(file.arrays, f"input/{name}/")]
    aux_map = [maps[2]]
    variables = converted(
        file.below("param/") | file.below("buffer/"),
        ("decode_head", (decode, [maps])),
        ("auxiliary_head", (auxiliary, aux_map)),
    )
    for module, key, inputs, output in (
        (decode, "decode_head", [maps], "logits_decode"),
        (auxiliary, "auxiliary_head", aux_map, "logits_aux"),
    ):
        logits = jax.jit(module.apply)(variables[key], *inputs)
        expected = golden_seg.last(file.arrays[f"{name}/{output}"])
        assert golden_seg.relative_error(logits, expected) < 1e-5


def test_golden_neck_through_the_table():
    file = golden_seg.load("neck")
    case = next(name for name in file.facts["cases"] if name.endswith("_eval"))
    maps = [golden_seg.last(x) for x in golden_seg.numbered(file.arrays, f"input/{case}/")]
    theirs = {
        f"neck.{key}": value
        for kind in ("param", "buffer")
        for key, value in file.below(f"{kind}/{case}/").items()
    }
    neck = Feature2Pyramid()
    variables = converted(theirs, ("neck", (neck, [maps])))["neck"]
    outputs = jax.jit(neck.apply)(variables, maps)
    for i, output in enumerate(outputs):
        expected = golden_seg.last(file.arrays[f"output/{case}/{i}"])
        assert golden_seg.relative_error(output, expected) < 1e-5


def test_everything_that_does_not_fit_is_listed():
    model, variables = segmenter("vig_h_t")
    state_dict = mmseg.from_variables(variables)
    state_dict["decode_head.fpn_convs.3.conv.weight"] = np.zeros((8, 8, 3, 3))  # no such level
    state_dict["decode_head.fpn_bottleneck.bn.running_men"] = state_dict.pop(
        "decode_head.fpn_bottleneck.bn.running_mean"
    )
    state_dict["backbone.outnorm1.weight"] = np.zeros(17)
    state_dict["decode_head.conv_seg.weight"] = np.zeros((3, 8, 3, 3))
    with pytest.raises(WeightsError, match="aux_channels") as error:
        mmseg.to_variables(state_dict, model)
    message = str(error.value)
    assert "missing (1): decode_head.fpn_bottleneck.bn.running_mean" in message
    # The counter of a batch normalisation without running statistics is not one.
    assert "unexpected (3): " in message
    for part in (
        "decode_head.fpn_convs.3.conv.weight",
        "decode_head.fpn_bottleneck.bn.running_men",
        "decode_head.fpn_bottleneck.bn.num_batches_tracked",
        "shapes differ, in our layout (2): ",
        "backbone.outnorm1.weight: file (17,), model (16,)",
        "decode_head.conv_seg.weight: file (3, 8, 3, 3), model (8, 3)",
    ):
        assert part in message
    del state_dict["decode_head.fpn_bottleneck.bn.num_batches_tracked"]
    state_dict["decode_head.bottleneck.bn.num_batches_tracked"] = np.float32(1)
    with pytest.raises(WeightsError, match=r"num_batches_tracked is float32\(\)"):
        mmseg.to_variables(state_dict, model)
    with pytest.raises(WeightsError, match="mmsegmentation has no name for params/decode_head/x"):
        mmseg.from_variables({"params": {"decode_head": {"x": np.zeros(1)}}})
