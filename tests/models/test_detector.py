"""Mask R-CNN on ViG: parameters, padding, groups and errors. Values: `tests/tasks/detection`."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from vig_jax.errors import ConfigError
from vig_jax.models import Backbone, Detector
from vig_jax.models.detector import map_sizes

HIERARCHICAL = {"embed_dims": (8, 8, 8, 16), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 1, 1)}
PLAIN = {"img_size": 32, "embed_dim": 8, "depth": 1, "num_heads": 1}
SMALL = {"channels": 8, "box_channels": 8, "gla_implementation": "reference"}
FEW = {"proposals": 12, "level_proposals": 20, "detections": 6, "score_threshold": 0.0}


def small(name, **settings):
    sizes = HIERARCHICAL if name.startswith("vig_h") else PLAIN
    return vig_jax.create_detector(name, 3, **(sizes | SMALL | FEW | settings))


@functools.cache
def shapes(model):
    images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


# Millions of parameters in all, and those of the neck, with 80 classes.
COUNTS = {
    "vig_t": (25.9, 2_664_880),
    "vig_s": (43.1, 3_298_144),
    "vig_b": (111.4, 5_560_000),
    "vig_h_t": (48.1, 2_729_984),
    "vig_h_s": (69.6, 2_729_984),
    "vig_h_b": (108.3, 2_852_864),
}


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    params = shapes(vig_jax.create_detector(name, gla_implementation="reference"))
    total, neck = COUNTS[name]
    assert round(size(params) / 1e6, 1) == total
    assert size(params["neck"]) == neck
    assert size(params["rpn_head"]) == 593_935
    assert size(params["roi_head"]["bbox_head"]) == 14_306_705
    assert size(params["roi_head"]["mask_head"]) == 2_643_280


def test_boxes_alone_have_no_mask_head():
    params = shapes(small("vig_h_t", masks=False))
    assert params.keys() == {"backbone", "neck", "rpn_head", "roi_head"}
    assert params["roi_head"].keys() == {"bbox_head"}
    assert "norm" not in shapes(small("vig_t"))["backbone"]  # it would have no gradient


def spread(params, generator):
    """Returns random parameters with which scores and boxes differ clearly between regions."""
    return jax.tree.map(lambda x: 0.4 * generator.standard_normal(x.shape), params)


def padded(image, sides):
    """Returns the image with zeros up to the next multiple of 32 pixels, then NaN."""
    whole = [-(-n // 32) * 32 for n in image.shape[:2]]
    image = np.pad(image, [(0, n - m) for n, m in zip(whole, image.shape, strict=False)] + [(0, 0)])
    added = [(0, n - m) for n, m in zip(sides, whole, strict=True)] + [(0, 0)]
    return np.pad(image, added, constant_values=np.nan)[None]


@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_padding_changes_nothing(name):
    """Maps, detections and masks of an image are the same on every canvas."""
    with jax.enable_x64(True):
        model, generator = small(name), np.random.default_rng(0)
        params = spread(shapes(model), generator)
        image = generator.standard_normal((50, 70, 3))

        @jax.jit
        def run(params, images, sizes):
            apply = functools.partial(model.apply, {"params": params}, images, sizes=sizes)
            return apply(method="features"), apply()

        sizes = np.array([image.shape[:2]], np.int32)
        lone_maps, lone = jax.device_get(run(params, padded(image, (64, 96)), sizes))
        maps, found = jax.device_get(run(params, padded(image, (96, 160)), sizes))
        for x, expected in zip(maps, lone_maps, strict=True):
            height, width = expected.shape[1:3]
            chex.assert_trees_all_close(x[:, :height, :width], expected, rtol=1e-9, atol=1e-12)
            assert not np.any(x[:, height:])
            assert not np.any(x[:, :, width:])
        assert len(np.unique(lone.classes)) > 1
        assert (lone.scores > 0).all()
        chex.assert_trees_all_close(found, lone, rtol=1e-8, atol=1e-9)
        assert (lone.boxes[..., 2] <= 70).all()
        assert (lone.boxes[..., 3] <= 50).all()


def test_detections():
    """A row without an image has none; boxes, scores and masks are wide in bfloat16, too."""
    model = small("vig_h_t", dtype=jnp.bfloat16, score_threshold=0.05)
    params = jax.tree.map(np.float32, spread(shapes(model), np.random.default_rng(0)))
    images = np.random.default_rng(1).standard_normal((2, 64, 64, 3)).astype(np.float32)
    sizes = np.array([[64, 64], [0, 0]], np.int32)
    found = jax.device_get(jax.jit(model.apply)({"params": params}, images, sizes))
    assert {x.dtype for x in (found.boxes, found.scores, found.masks)} == {jnp.dtype("float32")}
    assert found.masks.shape == (2, 6, 28, 28)
    assert (np.asarray(found.classes[1]) == -1).all()
    assert not np.any(found.scores[1])
    real = np.asarray(found.classes[0]) >= 0
    assert real.any()
    assert (np.diff(found.scores[0]) <= 0).all()
    assert (np.asarray(found.scores[0])[real] > 0.05).all()


@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_description(name):
    model = small(name)
    assert isinstance(model, Backbone)
    images = jax.ShapeDtypeStruct((1, 64, 96, 3), jnp.float32)
    apply = functools.partial(model.apply, method="features")
    maps = jax.eval_shape(apply, {"params": shapes(model)}, images)
    assert [x.shape[1:3] for x in maps] == list(map_sizes((64, 96)))
    assert [(info.num_chs, info.reduction) for info in model.feature_info] == [
        (8, 4 * 2**i) for i in range(5)
    ]
    ids, last = model.layer_ids(shapes(model))
    assert set(jax.tree.leaves({k: ids[k] for k in model.head_prefixes})) == {last}
    assert set(jax.tree.leaves(ids["backbone"])) >= set(range(last))


def test_errors():
    for name, settings, message in (
        ("vig_t", {"chanels": 8}, "a detector on vig_t has no setting 'chanels'; did you mean"),
        ("vig_t", {"patch_size": 8}, "patch_size=8 must be 16"),
        ("vig_h_t", {"proposals": 0}, "proposals=0 must be at least 1"),
        ("vig_h_t", {"anchor_ratios": (1.0, 0.0)}, r"anchor_ratios=\(1.0, 0.0\) must be positive"),
    ):
        with pytest.raises(ConfigError, match=message):
            small(name, **settings)
    with pytest.raises(ConfigError, match="num_classes=1000; it must be 0: a detector"):
        Detector(vig_jax.create_model("vig_t"))
    images = jax.ShapeDtypeStruct((1, 64, 72, 3), jnp.float32)
    with pytest.raises(ConfigError, match="a side of 72 pixels; it must be a multiple of 32"):
        jax.eval_shape(small("vig_h_t").init, jax.random.key(0), images)
