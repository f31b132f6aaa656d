"""Learning rates by layer, against a table made by hand."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.models.parameter_groups import layer_ids
from vig_jax.train.optim.layer_decay import scale_by_layer


def test_scales():
    updates = {
        "patch_embed": {"conv1": jnp.ones(2)},
        "pos_embed": jnp.ones(1),
        "blocks_0": {"attn": jnp.ones(3)},
        "blocks_1": {"attn": jnp.ones(3)},
        "norm": {"scale": jnp.ones(1)},
        "head": {"kernel": jnp.ones(1)},
    }
    transformation = scale_by_layer(0.5, layer_ids)
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
        scale_by_layer(decay, layer_ids)
