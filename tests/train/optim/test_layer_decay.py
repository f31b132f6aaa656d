"""Learning rates by layer, against tables made by hand."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from vig_jax.train.optim.freeze import path_of
from vig_jax.train.optim.layer_decay import layer_ids, scale_by_layer


def shapes(name, **sizes):
    model = vig_jax.create_model(name, num_classes=3, gla_implementation="reference", **sizes)
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def by_module(params, depth):
    """Layers by the first names of the parameters' paths, each the same for all below it."""
    ids, last = layer_ids(params)
    table = {}
    for path, layer in jax.tree_util.tree_leaves_with_path(ids):
        name = "/".join(path_of(path).split("/")[:depth])
        assert table.setdefault(name, layer) == layer
    return table, last


def test_plain_model():
    params = shapes("vig_t", img_size=32, patch_size=8, embed_dim=8, num_heads=1, depth=11)
    table, last = by_module(params, 1)
    assert last == 12
    assert table == {
        "patch_embed": 0,
        "pos_embed": 0,
        "blocks_0": 1,
        "blocks_1": 2,
        "blocks_2": 3,
        "blocks_3": 4,
        "blocks_4": 5,
        "blocks_5": 6,
        "blocks_6": 7,
        "blocks_7": 8,
        "blocks_8": 9,
        "blocks_9": 10,
        "blocks_10": 11,  # not after blocks_1
        "norm": 12,
        "head": 12,
    }


def test_hierarchical_model():
    params = shapes("vig_h_t", embed_dims=(8, 8, 8, 8), depths=(2, 1, 2, 1), num_heads=(1, 1, 1, 1))
    table, last = by_module(params, 2)
    assert last == 7
    stem = {f"patch_embed/{name}": 0 for name in ("conv1", "norm1", "conv2", "norm2")}
    assert table == stem | {
        "stages_0/blocks_0": 1,
        "stages_0/blocks_1": 2,
        "downsample_0/conv": 3,
        "downsample_0/norm": 3,
        "stages_1/blocks_0": 3,
        "downsample_1/conv": 4,
        "downsample_1/norm": 4,
        "stages_2/blocks_0": 4,
        "stages_2/blocks_1": 5,
        "downsample_2/conv": 6,
        "downsample_2/norm": 6,
        "stages_3/blocks_0": 6,
        "norm/scale": 7,
        "norm/bias": 7,
        "head/kernel": 7,
        "head/bias": 7,
    }


def test_scales():
    updates = {
        "patch_embed": {"conv1": jnp.ones(2)},
        "pos_embed": jnp.ones(1),
        "blocks_0": {"attn": jnp.ones(3)},
        "blocks_1": {"attn": jnp.ones(3)},
        "norm": {"scale": jnp.ones(1)},
        "head": {"kernel": jnp.ones(1)},
    }
    transformation = scale_by_layer(0.5)
    scaled, _ = transformation.update(updates, transformation.init(updates))
    expected = {
        "patch_embed": {"conv1": np.full(2, 0.125)},
        "pos_embed": np.full(1, 0.125),
        "blocks_0": {"attn": np.full(3, 0.25)},
        "blocks_1": {"attn": np.full(3, 0.5)},
        "norm": {"scale": np.ones(1)},
        "head": {"kernel": np.ones(1)},
    }
    chex.assert_trees_all_close(scaled, expected)


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_refuses(decay):
    with pytest.raises(ValueError, match=r"config\.optimizer\.layer_decay=.* at most 1"):
        scale_by_layer(decay)
