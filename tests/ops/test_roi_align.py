import dataclasses

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import pytest

from kernels_pallas.testing import TOLERANCES, rms_relative_error
from tests import golden_det
from tests.golden_seg import last, numbered
from vig_jax.ops.roi_align import RoIAlign, box_levels

CASES = {case["name"]: case for case in golden_det.facts("roi_align")["cases"]}


def most_samples(rois, stride, size):
    """Returns the largest number of samples a side that adaptive sampling takes."""
    extent = (rois[:, 3:] - rois[:, 1:3]) / stride
    return int(np.ceil(np.max(extent / np.array(size[::-1]))))


def pool_of_images(align, maps, rois, levels, strides):
    """Pools RoIs with the number of an image in front: all of them from all images, then picks."""
    images = rois[:, 0].astype(int)
    spread = [jnp.broadcast_to(x, (len(maps[0]), *x.shape)) for x in (rois[:, 1:], levels)]
    return align(maps, *spread, strides)[images, jnp.arange(len(images))]


def with_gradients(align, maps, rois, levels, strides, cotangent):
    """Returns the pooled features and the gradients of their product with the cotangent."""

    def total(maps):
        pooled = pool_of_images(align, maps, rois, levels, strides)
        return jnp.sum(pooled * cotangent), pooled

    (_, pooled), gradients = jax.value_and_grad(total, has_aux=True)(maps)
    return pooled, gradients


@pytest.mark.parametrize("name", CASES)
def test_golden(precision, name):
    golden, case = golden_det.load("roi_align"), CASES[name]
    features, rois = (golden.arrays[k] for k in ("features", "rois"))
    stride = 1 / golden.facts["spatial_scale"]
    size = tuple(case["output"])
    align = RoIAlign(
        size,
        samples=case["sampling_ratio"],
        most_samples=most_samples(rois, stride, size),
        aligned=case["aligned"],
        rois_at_once=7,
    )
    levels = jnp.zeros(len(rois), int)
    maps, boxes = precision.inputs(last(features), rois)
    output, cotangent = (golden.arrays.get(f"{name}_{k}") for k in ("out", "cotangent"))
    given = precision.inputs(last(output if cotangent is None else cotangent))

    @jax.jit
    def run(maps, boxes, given):
        if cotangent is None or precision.dtype is np.float32:
            return pool_of_images(align, (maps,), boxes, levels, (stride,)), None
        return with_gradients(align, (maps,), boxes, levels, (stride,), given)

    pooled, gradients = run(maps, boxes, given)
    precision.close(pooled, last(output), 1e-6, 1e-5)
    if gradients is not None:
        precision.close(gradients[0], last(golden.arrays[f"{name}_grad"]), 1e-10)


@pytest.mark.parametrize("library", ["mm", "tv"])
def test_levels(precision, library):
    arrays = golden_det.load("levels").arrays
    found = jax.jit(box_levels, static_argnums=(1, 2))(
        precision.inputs(arrays["boxes"]), 4, library
    )
    np.testing.assert_array_equal(found, arrays[f"{library}_level"])


POOLS = {
    "pool_tv": ("tv", RoIAlign(samples=2, aligned=False, rois_at_once=5, backward="dense")),
    "pool_mm_s2": ("mm", RoIAlign(samples=2, rois_at_once=5, backward="scatter")),
    "pool_mm_s0": ("mm", RoIAlign(samples=0, rois_at_once=16)),
}


@pytest.mark.parametrize("name", POOLS)
def test_pyramid(precision, name):
    golden = golden_det.load("levels")
    arrays, (rule, align) = golden.arrays, POOLS[name]
    rois = arrays["pool_rois"]
    stored = list(numbered(arrays, "pool_map"))
    strides = [golden.facts["image"][0] / x.shape[2] for x in stored]
    if not align.samples:
        align = dataclasses.replace(align, most_samples=most_samples(rois, strides[0], align.size))
    maps = tuple(precision.inputs(last(x)) for x in stored)
    boxes, cotangent = precision.inputs(rois, last(arrays["pool_cotangent"]))

    @jax.jit
    def run(maps, boxes, cotangent):
        levels = box_levels(boxes[:, 1:], len(maps), rule)
        return with_gradients(align, maps, boxes, levels, strides, cotangent)

    pooled, gradients = run(maps, boxes, cotangent)
    precision.close(pooled, last(arrays[name]), 1e-5, 5e-5)
    for found, expected in zip(gradients, numbered(arrays, f"{name}_grad"), strict=True):
        precision.close(found, last(expected), 1e-5, 5e-5)


def some_rois(count, side):
    corners = np.sort(np.random.default_rng(2).uniform(-2, side + 2, (1, count, 2, 2)), 2)
    return jnp.asarray(corners.reshape(1, count, 4), jnp.float32)


def test_both_gradients_agree_and_boxes_get_none():
    maps = [jnp.asarray(np.random.default_rng(i).normal(size=(1, 8 >> i, 6 >> i, 3)), jnp.float32)
            for i in range(2)]  # fmt: skip
    rois = some_rois(11, 16)
    levels = jnp.arange(11)[None] % 2

    def total(maps, rois, backward):
        align = RoIAlign((2, 3), rois_at_once=4, backward=backward)
        return jnp.sum(jnp.sin(align(maps, rois, levels, (2, 4))))

    gradients = jax.jit(jax.grad(total, (0, 1)), static_argnums=2)
    scattered, of_boxes = gradients(maps, rois, "scatter")
    products, _ = gradients(maps, rois, "dense")
    for a, b in zip(scattered, products, strict=True):
        assert np.abs(a).max() > 0.1
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert not of_boxes.any()


def test_more_rois_change_nothing():
    maps = [jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 2)), jnp.float32)]
    rois = some_rois(6, 8)
    more = jnp.concatenate([rois, jnp.zeros_like(rois)], 1)

    def pool(rois):
        return RoIAlign((2, 2), rois_at_once=4)(maps, rois, jnp.zeros(rois.shape[:2], int), (1,))

    short, long = jax.jit(lambda a, b: (pool(a), pool(b)))(rois, more)
    np.testing.assert_array_equal(short, long[:, :6])


def test_a_flipped_image_has_flipped_features():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 6, 2)), jnp.float32)
    rois = some_rois(5, 12)
    flipped = jnp.stack([12 - rois[..., 2], rois[..., 1], 12 - rois[..., 0], rois[..., 3]], -1)

    @jax.jit
    def pool(x, rois):
        return RoIAlign((3, 2))([x], rois, jnp.zeros(rois.shape[:2], int), (2,))

    np.testing.assert_allclose(
        pool(x[:, :, ::-1], flipped), pool(x, rois)[:, :, :, ::-1], atol=2e-5
    )


def test_features_of_16_bits():
    maps = [jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 8, 2)), jnp.bfloat16)]
    rois = some_rois(4, 8)

    def pool(x):
        return RoIAlign((2, 2))([x], rois, jnp.zeros((1, 4), int), (1,))

    narrow, exact = jax.jit(lambda x: (pool(x), pool(x.astype(jnp.float32))))(maps[0])
    assert narrow.dtype == jnp.bfloat16
    np.testing.assert_array_equal(narrow, exact.astype(jnp.bfloat16))
    assert jax.eval_shape(jax.grad(lambda x: jnp.sum(pool(x))), maps[0]).dtype == jnp.bfloat16


@pytest.mark.parametrize("backward", ["dense", "scatter"])
def test_gradient_of_16_bits(backward):
    """It is as exact as the operands of its products."""
    generator = np.random.default_rng(1)
    maps = [generator.normal(size=(1, 16 >> i, 16 >> i, 8)).astype(np.float32) for i in range(2)]
    weights = generator.normal(size=(1, 20, 3, 3, 8)).astype(np.float32)
    levels = jnp.asarray(generator.integers(0, 2, (1, 20)))

    def gradient(backward, dtype):
        align = RoIAlign((3, 3), rois_at_once=8, backward=backward)

        def total(maps):
            pooled = align(maps, some_rois(20, 16), levels, (1, 0.5))
            return jnp.sum(pooled.astype(jnp.float32) * weights)

        return jax.jit(jax.grad(total))([jnp.asarray(x, dtype) for x in maps])

    exact = gradient("scatter", jnp.float32)
    for narrow, wide in zip(gradient(backward, jnp.bfloat16), exact, strict=True):
        assert narrow.dtype == jnp.bfloat16
        assert rms_relative_error(narrow, wide) < TOLERANCES["bfloat16"].gradient


def test_edges_on_whole_positions():
    """A whole number of positions a bin takes this number of samples, at their centres."""
    line = np.random.default_rng(4).normal(size=63).astype(np.float32)
    spans = [(low, high) for low in range(0, 57) for high in range(low + 7, 63, 7)]
    rois = np.array([(0, low, 1, high) for low, high in spans], np.float32) / np.float32(0.3)
    align = RoIAlign((7, 1), samples=0, most_samples=9, backward="scatter")

    @jax.jit
    def pool(maps, rois):
        return align([maps], rois, jnp.zeros(rois.shape[:2], int), (1 / 0.3,))

    pooled = pool(jnp.asarray(line)[None, :, None, None], jnp.asarray(rois)[None])[0, ..., 0, 0]
    for (low, high), found in zip(spans, pooled, strict=True):
        expected = line[low:high].reshape(7, -1).mean(1)
        np.testing.assert_allclose(found, expected, atol=2e-4, err_msg=f"{low} to {high}")


def test_the_gradient_is_checked():
    with pytest.raises(ValueError, match="backward='atomic' must be"):
        RoIAlign(backward="atomic")


def test_sums_have_few_axes():
    """XLA's YNNPACK crashes with seven on CPUs that it serves, which are not all."""

    def ranks(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "reduce_sum":
                yield eqn.invars[0].aval.ndim
            for inner in jax.extend.core.jaxprs_in_params(eqn.params):
                yield from ranks(inner)

    maps, rois = jnp.zeros((2, 8, 8, 3)), jnp.zeros((2, 5, 4))
    levels = jnp.zeros((2, 5), jnp.int32)
    found = jax.make_jaxpr(lambda *x: RoIAlign()([x[0]], x[1], x[2], [4]))(maps, rois, levels)
    assert max(ranks(found.jaxpr)) == 6
