"""The analytic count against the operations in the traced program."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from vig_jax.bench.macs import count_macs
from vig_jax.heads.upernet import POOL_SCALES
from vig_jax.layers.resize import adaptive_avg_pool

HIERARCHICAL = {"embed_dims": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "num_heads": (1, 2, 2, 4)}
PLAIN = {"img_size": 40, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}


def traced_macs(jaxpr, in_scan=False):
    """Multiplications in products, convolutions and, inside a scan, of states [B, H, K, V]."""
    total = 0
    # Zeros that fill up the rows of a product, as the stem's have them, and biases are no products.
    filled = {}
    for equation in jaxpr.eqns:
        name, arrays = equation.params.get("name"), equation.invars
        bias = equation.primitive.name == "concatenate" and equation.params["dimension"] == 0
        if name == "_pad" or (bias and arrays[-1].aval.shape[0] == 1):
            filled[equation.outvars[0]] = filled.get(arrays[0], arrays[0].aval.shape)
    for equation in jaxpr.eqns:
        name, params, out = equation.primitive.name, equation.params, equation.outvars[0].aval
        if name == "dot_general":
            axes, _ = params["dimension_numbers"]
            left, right = (filled.get(x, x.aval.shape) for x in equation.invars)
            pairs = zip(*axes, strict=True)
            total += out.size * int(np.prod([min(left[i], right[j]) for i, j in pairs]))
        elif name == "conv_general_dilated":
            height, width, per_group, _ = equation.invars[1].aval.shape
            total += out.size * height * width * per_group
        elif name == "mul" and in_scan and out.ndim == 4:
            total += out.size
        inner = [traced_macs(j, in_scan or name == "scan") for j in _jaxprs(params)]
        if name == "cond":  # a platform's own form of the same operation
            total += max(inner)
        else:
            total += sum(inner) * params.get("length", 1)
    return total


def trace(function, *arrays):
    return traced_macs(jax.make_jaxpr(function)(*arrays).jaxpr)


def _jaxprs(params):
    for value in params.values():
        for item in value if isinstance(value, tuple) else (value,):
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr


@pytest.mark.parametrize(
    ("name", "sizes", "image"),
    [
        # Every map has more than four rows: a depthwise convolution of fewer rows is a sum.
        ("vig_t", PLAIN, (40, 40)),
        ("vig_h_t", HIERARCHICAL, (160, 160)),
        ("vig_h_t", HIERARCHICAL, (141, 162)),
    ],
)
def test_counts_what_is_computed(name, sizes, image):
    model = vig_jax.create_model(name, 7, gla_implementation="reference", **sizes)
    images = jax.ShapeDtypeStruct((1, *image, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    assert count_macs(model, *image).total == trace(model.apply, variables, images)


@pytest.mark.parametrize(
    ("name", "sizes"), [("vig_t", PLAIN | {"img_size": 96}), ("vig_h_t", HIERARCHICAL)]
)
def test_counts_what_a_segmenter_computes(name, sizes):
    """The coarsest map has 6 x 6 tokens: resizing is by whole factors, which need no products."""
    model = vig_jax.create_segmenter(name, 7, channels=10, gla_implementation="reference", **sizes)
    image = (96, 96) if name == "vig_t" else (192, 192)
    images = jax.ShapeDtypeStruct((1, *image, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    *_, coarsest = jax.eval_shape(
        functools.partial(model.apply, method="features"), variables, images
    )
    assert coarsest.shape[1:3] == (6, 6)
    pooling = sum(
        trace(functools.partial(adaptive_avg_pool, size=n), coarsest) for n in POOL_SCALES
    )
    macs = count_macs(model, *image)
    assert macs.saved > 0
    assert macs.total - macs.saved + pooling == trace(model.apply, variables, images)


# GMAC of the decode head for 512 x 512 pixels, and of the whole model for 512 x 2048 pixels.
PUBLISHED = {
    ("vig_h_t", 512): (211.4, 940),
    ("vig_h_s", 512): (211.4, 1030),
    ("vig_h_b", 512): (212.1, 1176),
    ("vig_t", 512): (211.4, 874),
    ("vig_t", 192): (30.6, 151),
    ("vig_s", 512): (213.7, 964),
    ("vig_s", 384): (121.3, 595),
    ("vig_b", 512): (218.4, 1301),
    ("vig_b", 768): (483.4, 2361),
}


@pytest.mark.parametrize(("name", "channels"), PUBLISHED)
def test_segmenters_as_papers_count_them(name, channels):
    """Compares with the counts of whole models, which leave out the auxiliary head."""
    model = vig_jax.create_segmenter(name, channels=channels)
    head, whole = PUBLISHED[name, channels]
    neck = 0
    if name in ("vig_t", "vig_s", "vig_b"):
        neck = 32 * 32 * 24 * model.backbone.embed_dim**2
    assert round((count_macs(model, 512, 512).head - neck) / 1e9, 1) == head
    assert round(count_macs(model, 512, 2048).total / 1e9) == whole


# GMAC for 800 x 1280 pixels, 1,000 proposals and 100 masks.
DETECTORS = {
    "vig_t": 195,
    "vig_s": 267,
    "vig_b": 548,
    "vig_h_t": 264,
    "vig_h_s": 351,
    "vig_h_b": 491,
}


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_as_papers_count_them(name):
    assert (
        round(count_macs(vig_jax.create_detector(name), 800, 1280).total / 1e9) == DETECTORS[name]
    )


@pytest.mark.parametrize(
    ("name", "sizes"),
    [("vig_t", PLAIN | {"patch_size": 16, "img_size": 96}), ("vig_h_t", HIERARCHICAL)],
)
def test_counts_what_a_detector_computes(name, sizes):
    """Without what is done with boxes: neck, RPN head, box head and mask head by themselves."""
    model = vig_jax.create_detector(
        name, 7, channels=10, box_channels=12, proposals=30, detections=5,
        gla_implementation="reference", **sizes,
    )  # fmt: skip
    side = 96 if name == "vig_t" else 160
    images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    features = functools.partial(model.apply, method="features")
    maps = jax.eval_shape(features, variables, images)

    def heads(variables, boxes, masks):
        roi_head = model.bind(variables).roi_head
        return roi_head.bbox_head(boxes), roi_head.mask_head(masks)

    boxes = jax.ShapeDtypeStruct((1, 30, 7, 7, 10), jnp.float32)
    masks = jax.ShapeDtypeStruct((1, 5, 14, 14, 10), jnp.float32)
    counted = trace(features, variables, images) + trace(heads, variables, boxes, masks)
    counted += trace(functools.partial(model.apply, method="anchor_predictions"), variables, maps)
    assert count_macs(model, side, side).total == counted
