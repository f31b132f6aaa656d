"""The contract of a backbone: maps by index, models without a head, captured gates."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import vig_jax
from vig_jax.errors import ConfigError

SIZES = {
    "vig_t": {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2},
    "vig_h_t": {"embed_dims": (8, 8, 16, 16), "depths": (1, 2, 1, 1), "num_heads": (1, 1, 2, 2)},
}


def small_model(name, **changed):
    return vig_jax.create_model(
        name, **(SIZES[name] | {"gla_implementation": "reference"} | changed)
    )


def variables_of(model, images):
    """Random parameters: cheaper than initialising, and none is at an initial 0 or 1."""
    generator = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (x.ndim == 1) + 0.2 * generator.standard_normal(x.shape).astype(np.float32),
        jax.eval_shape(model.init, jax.random.key(0), images),
    )


@pytest.mark.parametrize("name", SIZES)
def test_maps_and_pooled_features(name):
    """Indices select maps; without a head the model returns what the head would have seen."""
    images = jax.random.normal(jax.random.key(0), (2, 32, 64, 3))
    model, bare = small_model(name, num_classes=5), small_model(name, num_classes=0)
    variables = variables_of(model, images)
    assert jax.eval_shape(bare.init, jax.random.key(0), images)["params"].keys() == (
        variables["params"].keys() - {"head"}
    )

    @jax.jit
    def run(variables):
        body = {"params": {k: v for k, v in variables["params"].items() if k != "head"}}
        inner = bare.apply(
            body, images, capture_intermediates=lambda module, _: module.name == "blocks_1"
        )[1]
        return {
            "logits": model.apply(variables, images),
            "pooled": bare.apply(body, images),
            "default": bare.apply(body, images, method="features"),
            "chosen": bare.apply(body, images, method="features", out_indices=(-1, 1)),
            "inner": inner["intermediates"],
        }

    seen = run(variables)
    head = variables["params"]["head"]
    np.testing.assert_allclose(
        seen["pooled"] @ head["kernel"] + head["bias"], seen["logits"], rtol=1e-4, atol=1e-4
    )
    last, chosen = seen["chosen"]
    np.testing.assert_allclose(last, seen["default"][-1], rtol=1e-5, atol=1e-5)
    if name == "vig_t":
        np.testing.assert_allclose(jnp.mean(last, (1, 2)), seen["pooled"], rtol=1e-4, atol=1e-5)
        chosen_inside = seen["inner"]["blocks_1"]["__call__"][0].total()  # the residual stream
    else:
        chosen_inside = seen["default"][1]
    np.testing.assert_allclose(chosen, chosen_inside, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", SIZES)
def test_what_lies_above_the_highest_index_is_not_computed(name):
    model = small_model(name)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    lowest = {k: v for k, v in variables["params"].items() if k.endswith(("embed", "_0"))}

    def features(variables, images):
        return model.apply(variables, images, method="features", out_indices=[0])

    (x,) = jax.eval_shape(features, {"params": lowest}, images)
    assert x.shape[1] == 32 // model.feature_info[0].reduction


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("indices", [(), (4,), (0, -5)])
def test_indices_out_of_range(name, indices):
    model = small_model(name)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    init = functools.partial(model.init, method="features", out_indices=indices)
    message = "-3 to 2: .* 3 blocks" if name == "vig_t" else "-4 to 3: .* 4 stages"
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(init, jax.random.key(0), images)


@pytest.mark.parametrize(("name", "remat"), [("vig_t", False), ("vig_h_t", True)])
def test_gates_are_captured_only_on_request(name, remat):
    model = small_model(name, remat=remat)
    images = jax.ShapeDtypeStruct((2, 32, 64, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert variables.keys() == {"params"}

    def capture(variables, images):
        return model.apply(variables, images, mutable=["intermediates"])[1]["intermediates"]

    state = jax.eval_shape(capture, variables, images)
    captured = {
        path.rpartition("/")[2]: value[0].shape
        for path, value in traverse_util.flatten_dict(state, sep="/").items()
        if path.startswith(("blocks_0", "stages_1/blocks_1"))
    }
    rows, heads, width = (4 * 8, 2, 16) if name == "vig_t" else (4 * 8, 1, 8)
    decay = (2, rows, heads, width // heads // 2)
    assert captured == {
        "projected": (2, rows, 3 * width + 16),
        "local": (2, rows, width),
        "log_decay_fwd": decay,
        "log_decay_bwd": decay,
        "local_gate": (2, rows, width),
    }
