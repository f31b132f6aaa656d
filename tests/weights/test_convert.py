"""Upstream weights: names, layouts, strictness, files."""

from pathlib import Path

import chex
import jax
import numpy as np
import pytest
import safetensors.numpy

import vig_jax
from tests import golden
from vig_jax.weights import upstream

MODELS = Path(__file__).parents[1] / "models" / "golden"
FILE = Path(__file__).parent / "golden" / "plain_fmt.safetensors"


@pytest.fixture(scope="module")
def case():
    return golden.load(MODELS, "plain_fmt")[0]


@pytest.fixture
def state_dict(case):
    return golden.weights(case["keys"], case["multipliers"])


@pytest.fixture
def model(case):
    return vig_jax.create_model("vig_t", **case["model"])


def test_file_gives_golden_logits(case):
    variables = vig_jax.load_weights(FILE, "vig_t", **case["model"])
    model = vig_jax.create_model("vig_t", **case["model"], merge_scale=0.25)
    images = golden.images("plain_fmt", "native", case["images"]["native"])
    expected = golden.load(MODELS, "plain_fmt")[1]["logits64.eval.native"]
    assert golden.relative_error(jax.jit(model.apply)(variables, images), expected) < 1e-5


@pytest.mark.parametrize(
    "name",
    # The larger ones have the same names, of more blocks.
    ["vig_t", *(pytest.param(name, marks=pytest.mark.slow) for name in ("vig_s", "vig_b"))],
)
def test_round_trip_to_the_byte(name):
    keys = golden.load(MODELS, name)[0]["keys"]
    state_dict = golden.weights([(key, shape) for key, shape, *_ in keys], {})
    params = upstream.to_params(state_dict, vig_jax.create_model(name))
    chex.assert_trees_all_equal(upstream.from_params(params), state_dict)


def test_missing_and_unexpected_names_are_listed(state_dict, model):
    value = state_dict.pop("blocks.0.attn.qkv_proj.weight")
    state_dict["blocks.0.attn.qkv.weight"] = value
    with pytest.raises(ValueError, match="missing") as error:
        upstream.to_params(state_dict, model)
    assert "missing (1): blocks.0.attn.qkv_proj.weight" in str(error.value)
    assert "unexpected (1): blocks.0.attn.qkv.weight" in str(error.value)


def test_blocks_the_model_does_not_have_are_unexpected(state_dict, model):
    state_dict["blocks.1.mlp_norm.weight"] = np.ones(32, np.float32)
    with pytest.raises(ValueError, match=r"unexpected \(1\): blocks\.1\.mlp_norm\.weight"):
        upstream.to_params(state_dict, model)


def test_unknown_parameter_has_no_upstream_name():
    with pytest.raises(ValueError, match="extra/kernel"):
        upstream.from_params({"extra": {"kernel": np.zeros((1, 1))}})


def test_bad_files(tmp_path, case):
    with pytest.raises(FileNotFoundError, match="no weight file"):
        vig_jax.load_weights(tmp_path / "absent.safetensors", "vig_t")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(FILE.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"broken\.safetensors is not a readable"):
        vig_jax.load_weights(broken, "vig_t", **case["model"])
    text = tmp_path / "weights.txt"
    text.write_text("no")
    with pytest.raises(ValueError, match=r"\.pth and \.safetensors files are read"):
        vig_jax.load_weights(text, "vig_t")
    empty = tmp_path / "empty.safetensors"
    safetensors.numpy.save_file({}, empty)
    with pytest.raises(ValueError, match="missing"):
        vig_jax.load_weights(empty, "vig_t", **case["model"])
    with pytest.raises(ValueError, match="holds no finished checkpoint"):
        vig_jax.load_weights(tmp_path, "vig_t")
