"""Logits, inner features and gradients against upstream's, float32 and float64."""

import functools
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from tests import golden
from vig_jax.convert import upstream

FOLDER = Path(__file__).parent / "golden"
SMALL = ("plain_t", "plain_s", "plain_x", "plain_eps", "plain_fmt")
FULL = ("vig_t", "vig_s", "vig_b")
# Largest difference over largest magnitude, by the dtype of the computation.
LOGITS = {"float32": 1e-5, "float64": 1e-9}
GRADIENTS = {"float32": 1e-4, "float64": 1e-7}  # the stored gradients are rounded to float32
DIGESTS = {"float32": 1e-4, "float64": 1e-9}
UPSTREAM_EVAL = 0.25  # upstream's evaluation halves the merged scan twice


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    with jax.enable_x64(request.param == "float64"):
        yield request.param


def build(name: str, merge_scale: float, dtype: str):
    """The model, its variables in `dtype`, and the golden case."""
    case, arrays = golden.load(FOLDER, name)
    if name in FULL:
        keys, multipliers = [(key, shape) for key, shape, *_ in case["keys"]], {}
        model = vig_jax.create_model(name, merge_scale=merge_scale)
    else:
        keys, multipliers = case["keys"], case["multipliers"]
        model = vig_jax.create_model("vig_t", **case["model"], merge_scale=merge_scale)
    state_dict = golden.weights(keys, multipliers)
    assert golden.digest(state_dict) == case["weights_sha256"]
    params = jax.tree.map(lambda x: jnp.asarray(x, dtype), upstream.to_params(state_dict, model))
    return model, {"params": params}, case, arrays


@pytest.mark.parametrize("name", SMALL)
def test_evaluation_logits(name, dtype):
    model, variables, case, arrays = build(name, UPSTREAM_EVAL, dtype)
    apply = jax.jit(model.apply)
    # Every resolution in float64; in float32 the ragged one, whose grid is not a whole number.
    tags = case["images"] if dtype == "float64" else ("native", "72x56")
    for tag in tags:
        images = golden.images(name, tag, case["images"][tag])
        logits = apply(variables, jnp.asarray(images, dtype))
        expected = arrays.get(f"logits64_f64interp.eval.{tag}", arrays[f"logits64.eval.{tag}"])
        assert logits.dtype == dtype
        assert golden.relative_error(logits, expected) < LOGITS[dtype], tag


@pytest.mark.parametrize("name", FULL)
def test_full_size_logits(name):
    model, variables, _, arrays = build(name, UPSTREAM_EVAL, "float32")
    images = golden.images(name, "native", (2, 3, 224, 224))
    logits = jax.jit(model.apply)(variables, images)
    assert golden.relative_error(logits, arrays["logits64.eval.native"]) < LOGITS["float32"]
    if "logits64.eval.256x192" in arrays:
        images = golden.images(name, "256x192", (1, 3, 256, 192))
        logits = jax.jit(model.apply)(variables, images)
        assert golden.relative_error(logits, arrays["logits64.eval.256x192"]) < LOGITS["float32"]


def test_full_size_gradients():
    name = "vig_t"
    model, variables, case, arrays = build(name, 0.5, "float32")
    images = golden.images(name, "native", (2, 3, 224, 224))[:1]
    logits, loss, gradients = forward_and_gradients(model, variables, images, name)
    assert golden.relative_error(logits, arrays["logits64.train.native"]) < LOGITS["float32"]
    chex.assert_trees_all_close(loss, arrays["loss64"], rtol=1e-4)
    check_digests(gradients, arrays, DIGESTS["float32"])
    assert set(gradients) == {key for key, *_ in case["keys"]}


@pytest.mark.parametrize("name", SMALL)
def test_training_logits_and_gradients(name, dtype):
    model, variables, case, arrays = build(name, 0.5, dtype)
    images = jnp.asarray(golden.images(name, "native", case["images"]["native"]), dtype)
    logits, loss, gradients = forward_and_gradients(model, variables, images, name)
    assert golden.relative_error(logits, arrays["logits64.train.native"]) < LOGITS[dtype]
    chex.assert_trees_all_close(loss, arrays["loss64"], rtol=LOGITS[dtype] * 10)
    check_digests(gradients, arrays, DIGESTS[dtype])
    for key, gradient in gradients.items():
        if f"g64.{key}" in arrays:
            error = golden.relative_error(gradient, arrays[f"g64.{key}"])
            assert error < GRADIENTS[dtype], key


def forward_and_gradients(model, variables, images, name):
    """Logits, loss sum(logits * coef), its gradients by upstream names; the image's as "input"."""
    shape = (len(images), model.num_classes)
    coef = golden.noise(f"coef/{name}", shape).astype(np.float32)

    def loss(params, images):
        rngs = {"dropout": jax.random.key(0)}
        logits = model.apply({"params": params}, images, train=True, rngs=rngs)
        return jnp.sum(logits * coef), logits

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))
    (value, logits), (params, image) = step(variables["params"], images)
    gradients = upstream.from_params(params)
    if name in SMALL:
        gradients["input"] = np.moveaxis(np.asarray(image), -1, 1)
    return logits, value, gradients


def check_digests(gradients, arrays, tolerance):
    """A stored digest is [sum(g * probe), norm, sum, max] of one upstream gradient."""
    for key, gradient in gradients.items():
        expected = arrays[f"gdig.{key}"]
        gradient = np.asarray(gradient, np.float64)
        actual = np.sum(gradient * golden.noise(f"probe/{key}", gradient.shape))
        assert abs(actual - expected[0]) <= tolerance * expected[1], key
        np.testing.assert_allclose(np.linalg.norm(gradient), expected[1], rtol=tolerance)


# Our module path (as captured) to upstream's; outputs of one image.
FEATURES = {
    "patch_embed": "patch_embed",
    "blocks_0/attn/dwconv": None,  # before the activation; upstream stores it after
    "blocks_0/attn/qkv_proj": "blocks.0.attn.qkv_proj",
    "blocks_0/attn/gk_proj_up": "blocks.0.attn.gk_proj",
    "blocks_0/attn/l_norm": "blocks.0.attn.l_norm",
    "blocks_0/attn/g_norm": "blocks.0.attn.g_norm",
    "blocks_0/attn/g_proj": "blocks.0.attn.g_proj",
    "blocks_0/attn/o_proj": "blocks.0.attn.o_proj",
    "blocks_0/attn": "blocks.0.attn",
    "blocks_0/mlp": "blocks.0.mlp",
    "blocks_0": "blocks.0",
    "blocks_1": "blocks.1",
    "norm": "norm",
}


@pytest.mark.parametrize("name", [n for n in SMALL if n not in ("plain_x", "plain_eps")])
def test_inner_features(name, dtype):
    model, variables, case, arrays = build(name, UPSTREAM_EVAL, dtype)
    images = jnp.asarray(golden.images(name, "native", case["images"]["native"])[:1], dtype)
    apply = jax.jit(functools.partial(model.apply, capture_intermediates=True))
    _, state = apply(variables, images)
    seen = 0
    for ours, theirs in FEATURES.items():
        expected = arrays.get(f"feat64.{theirs}")
        if expected is None:
            continue
        value = state["intermediates"]
        for part in ours.split("/"):
            value = value[part]
        actual = np.asarray(value["__call__"][0])
        assert golden.relative_error(actual.reshape(expected.shape), expected) < 2 * LOGITS[dtype]
        seen += 1
    assert seen >= 8
