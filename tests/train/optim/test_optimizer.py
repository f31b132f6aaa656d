import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

import vig_jax
from configs import common
from vig_jax.config import parse
from vig_jax.errors import ConfigError
from vig_jax.models import ViG
from vig_jax.train.optim.optimizer import decay_mask, global_norm, make_optimizer

CONFIG = parse(common.get_config()).optimizer


def test_decays_matrices_and_the_position_embedding_only():
    model = vig_jax.create_model("vig_t", embed_dim=32, num_heads=1, depth=1)
    images = jnp.zeros((1, 224, 224, 3))
    params = jax.eval_shape(model.init, jax.random.PRNGKey(0), images)["params"]
    mask = {
        jax.tree_util.keystr(path, simple=True, separator="/"): decays
        for path, decays in jax.tree_util.tree_leaves_with_path(decay_mask(params))
    }
    assert mask["pos_embed"]
    assert mask["head/kernel"]
    assert not mask["norm/scale"]
    assert {name for name, decays in mask.items() if decays} == {
        name for name in mask if name == "pos_embed" or name.endswith("/kernel")
    }


def test_two_dimensional_bias_is_not_decayed():
    assert decay_mask({"bias": jnp.zeros((2, 2)), "kernel": jnp.zeros((2, 2))}) == {
        "bias": False,
        "kernel": True,
    }


def test_norm_of_all_leaves():
    tree = {"kernel": jnp.full((2, 2), 3.0), "bias": {"scale": jnp.full((2,), -4.0)}}
    np.testing.assert_allclose(jax.jit(global_norm)(tree), np.sqrt(4 * 9 + 2 * 16), rtol=1e-6)


def test_one_update_is_adamw():
    config = dataclasses.replace(CONFIG, clip_norm=0.0, weight_decay=0.3)
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.full((2,), 2.0)}
    grads = jax.tree.map(lambda x: jnp.full_like(x, -4.0), params)
    optimizer = make_optimizer(config, lambda step: 0.1)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    # The first step of Adam is the sign of the gradient; decay is a share of the weight.
    expected = {"kernel": jnp.full((2, 2), 0.1 * (1 - 0.3 * 2)), "bias": jnp.full((2,), 0.1)}
    chex.assert_trees_all_close(updates, expected, rtol=1e-4)


@pytest.mark.parametrize("setting", [{"layer_decay": 0.5}, {"freeze": "backbone"}])
def test_groups_are_needed(setting):
    with pytest.raises(ConfigError, match="need a model with parameter groups"):
        make_optimizer(dataclasses.replace(CONFIG, **setting), lambda step: 0.1)


def test_layers_and_frozen_parameters():
    config = dataclasses.replace(
        CONFIG, clip_norm=0.0, weight_decay=0.3, layer_decay=0.5, freeze="blocks_0/mlp"
    )
    names = ("patch_embed", "blocks_0/attn", "blocks_0/mlp", "blocks_1/attn", "head")
    params = traverse_util.unflatten_dict(
        {f"{name}/kernel": jnp.full((2, 2), 2.0) for name in names}, sep="/"
    )
    grads = jax.tree.map(lambda x: jnp.full_like(x, -4.0), params)
    optimizer = make_optimizer(config, lambda step: 0.1, ViG())
    state = optimizer.init(params)
    # Two moments of each of the four that are trained.
    assert sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim) == 4 * 2 * 4
    updates, _ = optimizer.update(grads, state, params)
    # Adam's first step is the sign of the gradient; it and the decay shrink from layer to layer.
    head = 0.1 * (1 - 0.3 * 2)
    scales = dict(zip(names, (0.125, 0.25, 0.0, 0.5, 1.0), strict=True))
    found = traverse_util.flatten_dict(updates, sep="/")
    for name, scale in scales.items():
        np.testing.assert_allclose(found[f"{name}/kernel"], scale * head, rtol=1e-4, err_msg=name)


def test_state_is_that_of_before_there_were_these_settings():
    params = {"head": {"kernel": jnp.zeros((2, 2))}}
    state = make_optimizer(CONFIG, lambda step: 0.1).init(params)
    clip, (moments, decay, rate) = state
    assert (clip, decay.inner_state) == (optax.EmptyState(), optax.EmptyState())
    assert (int(moments.count), int(rate.count)) == (0, 0)


def test_clips_the_global_norm():
    # A large eps makes Adam's first update proportional to the gradient it sees.
    params = {"a": jnp.zeros((3,)), "b": jnp.zeros((4,))}
    grads = {"a": jnp.full((3,), 6.0), "b": jnp.full((4,), 8.0)}
    norm = float(optax.tree.norm(grads))

    def update(clip_norm):
        config = dataclasses.replace(CONFIG, clip_norm=clip_norm, eps=1e6, weight_decay=0.0)
        optimizer = make_optimizer(config, lambda step: 1.0)
        return optimizer.update(grads, optimizer.init(params), params)[0]

    clipped, free = update(5.0), update(0.0)
    np.testing.assert_allclose(
        float(optax.tree.norm(clipped) / optax.tree.norm(free)), 5.0 / norm, rtol=1e-4
    )
    chex.assert_trees_all_close(update(2 * norm), free)
