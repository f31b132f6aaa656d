import jax
import pytest

from vig_jax.models.parameter_groups import path_of
from vig_jax.train.optim.freeze import frozen_mask

PARAMS = {
    "patch_embed": {"conv1": {"kernel": 0, "bias": 0}},
    "pos_embed": 0,
    "blocks_0": {"attn": {"kernel": 0}, "mlp": {"kernel": 0}},
    "blocks_1": {"attn": {"kernel": 0}, "mlp": {"kernel": 0}},
    "norm": {"scale": 0},
    "head": {"kernel": 0, "bias": 0},
}


def frozen(freeze):
    mask = frozen_mask(freeze, PARAMS, ("head",))
    return {path_of(path) for path, value in jax.tree_util.tree_leaves_with_path(mask) if value}


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        ("", set()),
        ("pos_embed", {"pos_embed"}),
        ("patch_embed", {"patch_embed/conv1/kernel", "patch_embed/conv1/bias"}),
        ("patch_embed/conv1/bias, norm", {"patch_embed/conv1/bias", "norm/scale"}),
        ("blocks_[1-9]", {"blocks_1/attn/kernel", "blocks_1/mlp/kernel"}),
        ("*/attn", {"blocks_0/attn/kernel", "blocks_1/attn/kernel"}),
        (
            "backbone",
            {path_of(path) for path, _ in jax.tree_util.tree_leaves_with_path(PARAMS)}
            - {"head/kernel", "head/bias"},
        ),
    ],
)
def test_names_and_globs(freeze, expected):
    assert frozen(freeze) == expected


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        ("pos_embed,block_0", "no parameter is called 'block_0'; there are backbone .*, blocks_0"),
        ("backbone,head", "leaves nothing to train"),
        ("*", "leaves nothing to train"),
    ],
)
def test_refuses(freeze, message):
    with pytest.raises(ValueError, match=message):
        frozen_mask(freeze, PARAMS, ("head",))
