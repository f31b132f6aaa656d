import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_det
from tests.ops.test_rle import bitmaps
from tests.ops.test_roi_align import most_samples
from vig_jax.ops.mask_targets import mask_targets
from vig_jax.ops.paste import cut_to_box, paste
from vig_jax.ops.roi_align import RoIAlign


def targets(precision, samples, aligned=True):
    """Returns soft targets from whole bitmaps."""
    arrays = golden_det.load("masks").arrays
    size = arrays["mm_bitmap_targets"].shape[1:]
    rois = precision.inputs(arrays["proposals"])
    most = most_samples(np.insert(arrays["proposals"], 0, 0, axis=1), 1, size)
    align = RoIAlign(size, samples, most, aligned)
    run = jax.jit(mask_targets, static_argnames="align")
    return run(precision.inputs(bitmaps() * 1.0), rois, jnp.asarray(arrays["index"]), align=align)


def test_targets_from_whole_bitmaps(precision):
    arrays = golden_det.load("masks").arrays
    adaptive = targets(precision, samples=0)
    precision.close(adaptive, arrays["mm_bitmap_soft"], 1e-6, 2e-5)
    precision.close(targets(precision, samples=2), arrays["sampling2_soft"], 1e-6, 2e-5)
    precision.close(targets(precision, 0, aligned=False), arrays["tv_targets"], 1e-6, 2e-5)
    if precision.dtype is np.float64:
        np.testing.assert_array_equal(adaptive >= 0.5, arrays["mm_bitmap_targets"])


def test_targets_from_cut_bitmaps():
    """Bitmaps that are cut to boxes give nearly the pixels of whole ones."""
    arrays = golden_det.load("masks").arrays
    cut = np.stack([cut_to_box(m, b) for m, b in zip(bitmaps(), arrays["gt"], strict=True)])
    padded = np.concatenate([cut, np.zeros_like(cut)])
    boxes = np.concatenate([arrays["gt"], np.zeros_like(arrays["gt"])])
    inputs = [jnp.asarray(x) for x in (arrays["proposals"].astype(np.float32), arrays["index"])]
    boxes = jnp.asarray(boxes, jnp.float32)
    run = jax.jit(mask_targets)
    found = run(jnp.asarray(padded), *inputs, boxes)
    alone = run(jnp.asarray(cut), *inputs, boxes[: len(cut)])
    np.testing.assert_array_equal(found, alone)
    assert np.mean((found >= 0.5) == arrays["mm_bitmap_targets"]) > 0.99
    empty = run(jnp.asarray(padded), *inputs[:1], inputs[1] + len(cut), boxes)
    assert not np.any(empty)


def test_cutting_averages():
    mask = np.zeros((6, 8), bool)
    mask[1:3, 2:6] = True
    cut = cut_to_box(mask, np.array([1.0, 1.0, 5.0, 3.0]), side=4)
    np.testing.assert_array_equal(cut, np.tile([0, 255, 255, 255], (4, 1)))
    half = cut_to_box(mask, np.array([1.5, 0.0, 2.5, 2.0]), side=1)
    np.testing.assert_array_equal(half, [[64]])  # a quarter
    assert cut_to_box(mask, np.array([2.0, 2.0, 2.5, 2.25])).min() == 255
    thin = cut_to_box(np.ones((6, 1), bool), np.array([0.25, 0, 0.75, 8]), side=4)
    np.testing.assert_array_equal(thin, np.tile([[255], [255], [255], [0]], 4))


def test_cutting_weighs_pixels_by_the_part_in_a_cell():
    def weights(low, high, length):
        edges = np.linspace(low, high, 8)[:, None]
        overlap = np.minimum(edges[1:], np.arange(length) + 1)
        overlap -= np.maximum(edges[:-1], np.arange(length))
        return np.maximum(overlap, 0) * 7 / (high - low)

    rng = np.random.default_rng(0)
    for _ in range(20):
        height, width = rng.integers(1, 60, 2)
        mask = rng.random((height, width)) < 0.5
        left, right = np.sort(rng.uniform(-3, 1.1 * width, 2))
        top, bottom = np.sort(rng.uniform(-3, 1.1 * height, 2))
        exact = 255 * (weights(top, bottom, height) @ mask @ weights(left, right, width).T)
        for stored in (mask, np.asfortranarray(mask)):
            cut = cut_to_box(stored, np.array([left, top, right, bottom]), side=7)
            np.testing.assert_allclose(cut, exact, atol=0.5 + 1e-9)


@pytest.mark.parametrize("library", ["mm", "tv"])
def test_pasting(library):
    golden = golden_det.load("masks")
    height, width = golden.facts["image"]
    expected = golden.arrays[f"{library}_pasted"]
    bits = golden_det.unpack(golden.arrays[f"{library}_pasted_bits"], width)
    inputs = golden.arrays["paste_values"], golden.arrays["paste_boxes"]
    for i, (values, box) in enumerate(zip(*inputs, strict=True)):
        found = paste(values, box, height, width, library)
        np.testing.assert_allclose(found, expected[i], rtol=0, atol=1e-3, err_msg=f"mask {i}")
        np.testing.assert_array_equal(found >= 0.5, bits[i], err_msg=f"mask {i}")


def test_pasting_outside_of_the_image_and_without_area():
    ones = np.ones((28, 28), np.float32)
    for library in ("mm", "tv"):
        assert not paste(ones, np.array([50.0, 3, 70, 9]), 20, 30, library).any()
        assert not paste(ones, np.array([-90.0, 3, -70, 9]), 20, 30, library).any()
    assert not paste(ones, np.array([5.0, 3, 5, 9]), 20, 30).any()
