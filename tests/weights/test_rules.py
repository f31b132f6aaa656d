"""The rule tables of both families: every upstream key has its place, both ways."""

from pathlib import Path

import chex
import numpy as np
import pytest

import vig_jax
from tests import golden
from vig_jax.weights import upstream

MODELS = Path(__file__).parents[1] / "models" / "golden"


def numbered(keys):
    """Arrays of those shapes in which no two elements are alike."""
    return {
        key: np.arange(np.prod(shape), dtype=np.float32).reshape(shape) for key, shape, *_ in keys
    }


def hierarchical():
    case, _ = golden.load(MODELS, "hier_fmt")
    return numbered(case["keys"]), vig_jax.create_model("vig_h_t", **case["model"])


@pytest.mark.parametrize(
    "name",
    # The larger ones have the same names, of more blocks.
    ["vig_h_t", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vig_h_s", "vig_h_b"))],
)
def test_round_trip_to_the_byte(name):
    state_dict = numbered(golden.load(MODELS, name)[0]["keys"])
    model = vig_jax.create_model(name, gla_implementation="reference")
    chex.assert_trees_all_equal(
        upstream.from_params(upstream.to_params(state_dict, model)), state_dict
    )


def test_missing_and_unexpected_names_of_the_hierarchical_family():
    state_dict, model = hierarchical()
    state_dict["layers.1.blocks.0.norm2.shift"] = state_dict.pop("layers.1.blocks.0.norm2.bias")
    state_dict["layers.0.blocks.1.mlp.fc2.weight"] = np.zeros((32, 96))  # no such block
    state_dict["layers.3.downsample.1.bias"] = np.zeros(32)  # the last stage has no downsampling
    with pytest.raises(ValueError, match="missing") as error:
        upstream.to_params(state_dict, model)
    assert "missing (1): layers.1.blocks.0.norm2.bias" in str(error.value)
    assert "unexpected (3): " in str(error.value)
    for key in (
        "layers.1.blocks.0.norm2.shift",
        "layers.0.blocks.1.mlp.fc2.weight",
        "layers.3.downsample.1.bias",
    ):
        assert key in str(error.value)


def test_other_family_is_refused():
    state_dict, _ = hierarchical()
    plain = vig_jax.create_model("vig_t", depth=1, gla_implementation="reference")
    with pytest.raises(ValueError, match=r"missing .*unexpected .*patch_embed\.0\.weight"):
        upstream.to_params(state_dict, plain)


def test_other_widths_are_named_with_both_shapes():
    state_dict, model = hierarchical()
    state_dict["layers.0.downsample.1.weight"] = np.zeros((64, 32, 3, 3))
    with pytest.raises(
        ValueError, match=r"layers\.0\.downsample\.1\.weight: file \(3, 3, 32, 64\)"
    ):
        upstream.to_params(state_dict, model)


def test_norms_for_dense_tasks_are_new():
    state_dict, model = hierarchical()
    with_norms = model.clone(out_norms=True)
    params = upstream.to_params(state_dict, with_norms)
    chex.assert_trees_all_equal(
        upstream.to_params(upstream.from_params(params), with_norms), params
    )
    for stage, width in enumerate(model.embed_dims):
        norm = params.pop(f"out_norm_{stage}")
        chex.assert_trees_all_equal(
            norm, {"scale": np.ones(width, np.float32), "bias": np.zeros(width, np.float32)}
        )
    chex.assert_trees_all_equal(params, upstream.to_params(state_dict, model))
    state_dict["outnorm2.weight"] = norm["scale"]
    with pytest.raises(ValueError, match=r"missing \(7\): outnorm0\.bias"):
        upstream.to_params(state_dict, with_norms)
