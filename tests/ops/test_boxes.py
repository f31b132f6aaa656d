import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from vig_jax.ops import boxes

STDS = {"rpn": boxes.UNIT_STDS, "roi": (0.1, 0.1, 0.2, 0.2)}


@pytest.mark.parametrize("kind", STDS)
def test_coding(precision, kind):
    golden = golden_det.load("boxes").below(f"{kind}_")
    arrays = golden_det.load("boxes").arrays
    inputs = precision.inputs(arrays["boxes"], arrays["targets"], golden["deltas"])
    image = np.array(golden_det.facts("boxes")["image"])

    @jax.jit
    def run(priors, targets, deltas):
        both = boxes.decode(priors, deltas, STDS[kind])
        above = boxes.decode(priors, deltas, STDS[kind], clamp_below=False)
        clipped = [boxes.clip(x, jnp.asarray(image)) for x in (both, above)]
        return boxes.encode(priors, targets, STDS[kind]), both, above, *clipped

    encoded, both, above, both_clipped, above_clipped = run(*inputs)
    precision.close(encoded, golden["tv_encode"], 1e-10)
    precision.close(encoded, golden["mm_encode"], 1e-3)
    precision.close(both, golden["mm_decode"], 1e-10)
    precision.close(above, golden["tv_decode"], 1e-10)
    precision.close(both_clipped, golden["mm_decode_clipped"], 1e-10)
    precision.close(above_clipped, golden["tv_decode_clipped"], 1e-10)


def test_decoding_for_several_classes(precision):
    arrays = golden_det.load("boxes").arrays
    priors, deltas = precision.inputs(arrays["boxes"], arrays["classes_deltas"])
    deltas = deltas.reshape(len(priors), -1, 4)
    run = jax.jit(boxes.decode, static_argnums=2, static_argnames="clamp_below")
    both = run(priors[:, None], deltas, STDS["roi"])
    above = run(priors[:, None], deltas, STDS["roi"], clamp_below=False)
    clipped = boxes.clip(both, jnp.asarray(golden_det.facts("boxes")["image"]))
    precision.close(clipped.reshape(len(priors), -1), arrays["classes_mm_decode"], 1e-10)
    precision.close(above, arrays["classes_tv_decode"], 1e-10)


def test_clipping_and_small_boxes(precision):
    golden = golden_det.load("boxes")
    image = jnp.asarray(golden.facts["image"])
    clipped = jax.jit(boxes.clip)(precision.inputs(golden.arrays["wide"]), image)
    precision.close(clipped, golden.arrays["tv_clipped"], 1e-10)
    kept = precision.inputs(golden.arrays["tv_clipped"])
    for name, least in (("1e3", 1e-3), ("1e2", 1e-2), ("1", 1.0)):
        found = np.flatnonzero(boxes.sides_above(kept, least, strict=False))
        np.testing.assert_array_equal(found, golden.arrays[f"tv_keep_small_{name}"])
    found = np.flatnonzero(boxes.sides_above(kept))
    np.testing.assert_array_equal(found, golden.arrays["mm_keep_min0"])


def test_overlaps(precision):
    arrays = golden_det.load("boxes").arrays
    a, b = precision.inputs(arrays["iou_a"], arrays["iou_b"])
    precision.close(jax.jit(boxes.iou)(a, b), arrays["mm_iou"], 1e-10)
    precision.close(jax.jit(boxes.iou, static_argnums=2)(a, b, 0.0), arrays["tv_iou"], 1e-10)
    precision.close(jax.jit(boxes.iof)(a, b), arrays["mm_iof"], 1e-10)


def test_degenerate_boxes_have_finite_gradients():
    points = jnp.array([[3.0, 4, 3, 4], [5, 5, 2, 9], [0, 0, 0, 0]])
    whole = jnp.array([[0.0, 0, 8, 8]] * 3)

    def total(a, b):
        deltas = boxes.encode(a, b)
        return jnp.sum(deltas) + jnp.sum(boxes.decode(a, deltas)) + jnp.sum(boxes.iou(a, b))

    gradients = jax.jit(jax.grad(total, (0, 1)))
    for a, b in ((points, whole), (whole, points), (points, points)):
        for gradient in gradients(a, b):
            assert np.isfinite(gradient).all()


def test_coordinates_of_narrow_boxes_are_float32():
    narrow = jnp.array([[1328.0, 8, 1336, 16]], jnp.bfloat16)
    assert jax.eval_shape(boxes.iou, narrow, narrow).dtype == jnp.float32
    assert jax.eval_shape(boxes.decode, narrow, narrow).dtype == jnp.float32
