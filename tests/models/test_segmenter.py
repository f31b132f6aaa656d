"""UperNet on ViG: sizes, parameters, groups and errors. Values: `tests/heads/test_golden.py`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from tests import golden_seg
from vig_jax.errors import ConfigError
from vig_jax.models import Backbone, Segmenter
from vig_jax.models.parameter_groups import path_of
from vig_jax.train.optim.optimizer import decay_mask

HIERARCHICAL = {"embed_dims": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
PLAIN = {"img_size": 32, "patch_size": 16, "embed_dim": 8, "depth": 2, "num_heads": 1}
SMALL = {"channels": 8, "aux_channels": 4, "drop_path_rate": 0.0, "gla_implementation": "reference"}


def small(name, **settings):
    sizes = HIERARCHICAL if name.startswith("vig_h") else PLAIN
    return vig_jax.create_segmenter(name, 5, **(sizes | SMALL | settings))


@functools.cache
def shapes(model, side=64):
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)


def inputs(model, shape):
    """Returns random variables, cheaper than initial ones, and images."""
    generator = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda x: (x.ndim == 1) + 0.2 * generator.standard_normal(x.shape).astype(np.float32),
        shapes(model),
    )
    return variables, generator.standard_normal(shape).astype(np.float32)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Parameters of neck, decode head and auxiliary head for 150 classes, as mmsegmentation has them.
# Plain models also with a head of the backbone's width.
COUNTS = {
    ("vig_h_t", 512): (0, 31_497_366, 923_798),
    ("vig_h_s", 512): (0, 31_497_366, 923_798),
    ("vig_h_b", 512): (0, 33_315_990, 1_218_710),
    ("vig_t", 512): (443_328, 27_614_358, 481_430),
    ("vig_t", 192): (443_328, 4_272_918, 481_430),
    ("vig_s", 512): (1_771_392, 29_187_222, 923_798),
    ("vig_s", 384): (1_771_392, 17_024_406, 923_798),
    ("vig_b", 512): (7_081_728, 32_332_950, 1_808_534),
    ("vig_b", 768): (7_081_728, 67_963_542, 1_808_534),
}
WHOLE = {  # millions, with a head of 512 channels
    ("vig_h_t", 512): 60.25,
    ("vig_h_s", 512): 81.71,
    ("vig_h_b", 512): 122.42,
    ("vig_t", 512): 34.18,
    ("vig_s", 512): 54.11,
    ("vig_b", 512): 129.48,
}


@pytest.mark.parametrize(("name", "channels"), COUNTS)
def test_parameter_counts(name, channels):
    # The heads do not depend on the depth, and the whole is counted once.
    depth = {} if (name, channels) in WHOLE or name.startswith("vig_h") else {"depth": 4}
    settings = {"channels": channels, "gla_implementation": "reference"} | depth
    params = shapes(vig_jax.create_segmenter(name, **settings))["params"]
    parts = tuple(size(params.get(part)) for part in ("neck", "decode_head", "auxiliary_head"))
    assert parts == COUNTS[name, channels]
    if (name, channels) in WHOLE:
        assert round(size(params) / 1e6, 2) == WHOLE[name, channels]


@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_training_and_evaluation(name):
    """Sizes that no stride divides are rounded up; plain models have 4 by 4 logits per token."""
    model = small(name, dtype=jnp.bfloat16)
    variables, images = inputs(model, (2, 45, 66, 3))
    logits = jax.eval_shape(model.apply, variables, images)
    hierarchical = name == "vig_h_t"
    assert logits.shape == (2, 12, 17 if hierarchical else 16, 5)
    assert logits.dtype == jnp.float32

    @jax.jit
    def train(variables, images, key):
        return model.apply(
            variables,
            images,
            rngs={"dropout": key},
            mutable=["batch_stats"],
            method="training_logits",
        )

    (decode, auxiliary), moved = train(variables, images, jax.random.key(2))
    assert decode.shape == logits.shape
    assert auxiliary.shape == (2, 3, 5 if hierarchical else 4, 5)
    assert decode.dtype == auxiliary.dtype == jnp.float32
    assert np.isfinite(decode).all()
    # Every statistic moves, and nothing else is mutable.
    assert set(moved) == {"batch_stats"}
    before = jax.tree_util.tree_leaves_with_path(variables["batch_stats"])
    for (path, old), new in zip(before, jax.tree.leaves(moved["batch_stats"]), strict=True):
        assert not np.array_equal(old, new), path_of(path)


def test_no_parameter_is_unused():
    """Checks the gradients of both heads' losses; the backbone has a `norm` only if it is used."""
    assert "norm" not in shapes(small("vig_t"))["params"]["backbone"]
    assert "norm" in shapes(small("vig_t", norm_last=True))["params"]["backbone"]
    assert "norm" not in shapes(small("vig_h_t"))["params"]["backbone"]
    assert "out_norm_3" in shapes(small("vig_h_t"))["params"]["backbone"]
    assert "auxiliary_head" not in shapes(small("vig_t", aux_channels=0))["params"]


def test_initial_values():
    images = jnp.zeros((1, 64, 64, 3))
    model = small("vig_t", channels=64, aux_channels=0)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    head = params["decode_head"]
    kernel = head["fpn_bottleneck"]["conv"]["kernel"]
    assert kernel.shape == (3, 3, 256, 64)
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.02)
    assert np.abs(kernel).max() > 3 * np.std(kernel)  # not truncated
    np.testing.assert_allclose(np.std(head["conv_seg"]["kernel"]), 0.01, rtol=0.15)
    assert not np.any(head["conv_seg"]["bias"])
    for name in ("upsample_4x_0", "upsample_4x_3", "upsample_2x_0"):
        for x in params["neck"][name].values():
            largest = np.abs(x).max()
            assert 0.2 / np.sqrt(32) < largest <= 1 / np.sqrt(32)


def test_maps_of_plain_models():
    model = small("vig_t", depth=5, aux_channels=0)
    variables, images = inputs(model, (1, 64, 64, 3))

    @jax.jit
    def run(variables, images):
        stream = model.backbone.apply(
            {"params": variables["params"]["backbone"]},
            images,
            out_indices=range(5),
            norm_last=False,
            method="features",
        )
        return stream, model.apply(variables, images, method="features")

    stream, maps = jax.device_get(run(variables, images))
    np.testing.assert_allclose(maps[2], stream[3], rtol=1e-5)  # the neck leaves it as it is
    pooled = stream[4].reshape(1, 2, 2, 2, 2, 8).max((2, 4))
    np.testing.assert_allclose(maps[3], pooled, rtol=1e-5)


@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_description(name):
    model = small(name)
    assert isinstance(model, Backbone)
    images = jnp.zeros((1, 64, 64, 3))
    maps = jax.eval_shape(functools.partial(model.apply, method="features"), shapes(model), images)
    described = [(info.num_chs, 64 // info.reduction) for info in model.feature_info]
    assert described == [(x.shape[-1], x.shape[1]) for x in maps]
    smallest = model.smallest_size
    assert (
        0 not in jax.eval_shape(model.apply, shapes(model), images[:, :smallest, :smallest]).shape
    )
    with pytest.raises(ConfigError, match="at least"):
        jax.eval_shape(model.apply, shapes(model), images[:, :smallest, : smallest - 1])


# A parameter of ours for each that the golden values name, where the names differ.
OURS = (
    (r"backbone\.layers\.(\d+)\.norm1\.weight", r"backbone/blocks_\1/attn_norm/scale"),
    (r"backbone\.layers\.(\d+)\.mlp\.fc\.weight", r"backbone/blocks_\1/attn/o_proj/kernel"),
    (r"backbone\.layers\.(\d+)\.mlp\.fc\.bias", r"backbone/blocks_\1/attn/g_proj/bias"),
    (r"backbone\.patch_embed\.proj\.weight", "backbone/patch_embed/conv1/kernel"),
    (r"backbone\.patch_embed\.proj\.bias", "backbone/patch_embed/conv1/bias"),
    (r"backbone\.norm\.weight", "backbone/norm/scale"),
    (r"backbone\.pos_embed", "backbone/pos_embed"),
    (r"(.*)\.(bn|upsample_4x\.1)\.weight", r"\1/\2/scale"),
    (r"((?:neck|decode_head|auxiliary_head)\..*)\.weight", r"\1/kernel"),
    (r"((?:neck|decode_head|auxiliary_head)\..*)", r"\1"),
)


def our_name(name):
    """Returns None for `backbone.blocks`, which the original rule does not recognise as layers."""
    for pattern, ours in OURS:
        if match := re.fullmatch(pattern, name):
            return re.sub(r"\.(\d+)", r"_\1", match.expand(ours)).replace(".", "/")
    assert name.startswith("backbone.blocks.")
    return None


RULE = re.compile(r"layer_decay_([\d.]+)_(\d+)_layers")
LAYERED = [name for name in golden_seg.load_json("parameter_groups") if RULE.fullmatch(name)]


@pytest.mark.parametrize("group", LAYERED)
def test_parameter_groups_are_those_of_beit(group):
    decay, depth = RULE.fullmatch(group).groups()
    expected = golden_seg.load_json("parameter_groups")[group]
    params = shapes(small("vig_t", depth=int(depth), norm_last=True))["params"]
    ids, last = small("vig_t", depth=int(depth), norm_last=True).layer_ids(params)
    assert last == int(depth) + 1
    layers = {path_of(path): i for path, i in jax.tree_util.tree_leaves_with_path(ids)}
    decays = {
        path_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(decay_mask(params))
    }
    base = expected["decode_head.conv_seg.weight"]
    compared = {name: ours for name in expected if (ours := our_name(name))}
    assert len(compared) >= 3 * int(depth) + 10
    for name, ours in compared.items():
        rate = base["lr"] * float(decay) ** (last - layers[ours])
        assert rate == pytest.approx(expected[name]["lr"], rel=1e-12), name
        assert decays[ours] * base["weight_decay"] == expected[name]["weight_decay"], name


def test_errors():
    for settings, message in (
        ({"chanels": 8}, "a segmenter on vig_t has no setting 'chanels'; did you mean 'channels'"),
        ({"depths": 8}, "no setting 'depths'; did you mean 'depth'"),
        ({"channels": 0}, "channels=0 must be at least 1"),
        ({"dropout": 1.0}, "dropout=1.0 must be at least 0 and below 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            small("vig_t", **settings)
    with pytest.raises(ConfigError, match="num_classes=0 must be at least 1"):
        vig_jax.create_segmenter("vig_t", 0)
    with pytest.raises(ConfigError, match="norm_last=True is for plain models"):
        small("vig_h_t", norm_last=True)
    with pytest.raises(ConfigError, match="the backbone has num_classes=1000; it must be 0"):
        Segmenter(vig_jax.create_model("vig_t"))
    with pytest.raises(ConfigError, match="unknown model 'vig_x'"):
        vig_jax.create_segmenter("vig_x")
