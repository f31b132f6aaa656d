"""The layer of each parameter, against tables made by hand."""

import jax
import jax.numpy as jnp

import vig_jax
from vig_jax.models import Backbone
from vig_jax.models.parameter_groups import path_of


def by_module(name, levels, **sizes):
    """Layers by the first names of the parameters' paths, each the same for all below it."""
    model: Backbone = vig_jax.create_model(
        name, num_classes=3, gla_implementation="reference", **sizes
    )
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    ids, last = model.layer_ids(params)
    table = {}
    for path, layer in jax.tree_util.tree_leaves_with_path(ids):
        name = "/".join(path_of(path).split("/")[:levels])
        assert table.setdefault(name, layer) == layer
    return table, last


def test_plain_model():
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 8, "num_heads": 1, "depth": 11}
    table, last = by_module("vig_t", 1, **sizes)
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
    sizes = {"embed_dims": (8, 8, 8, 8), "depths": (2, 1, 2, 1), "num_heads": (1, 1, 1, 1)}
    table, last = by_module("vig_h_t", 2, **sizes)
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
