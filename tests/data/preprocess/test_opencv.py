"""OpenCV's pixels: `tests/golden_seg` holds what OpenCV made."""

import numpy as np
import pytest

from tests import golden_seg
from tests.data.photographs import photo
from vig_jax.data.preprocess import opencv
from vig_jax.data.preprocess.geometry import View

GOLDEN = golden_seg.facts("geometry")
needs_numba = pytest.mark.skipif(opencv.why_not() is not None, reason=f"{opencv.why_not()}")
FAST = [False, pytest.param(True, marks=needs_numba)]


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("case", range(len(GOLDEN["resized"])))
def test_images_and_masks_are_opencvs(case, fast):
    arrays = golden_seg.load("geometry").arrays
    image, mask = arrays["image_rgb"], arrays["label"]
    height, width = GOLDEN["resized"][case]["shape"]
    whole = (0, 0, width, height)
    resized = opencv.resize_window(image, (width, height), whole, fast=fast)
    np.testing.assert_array_equal(resized, arrays[f"resized/{case}/image_rgb"])
    view = View((0, 0, *mask.shape[::-1]), (width, height), whole, pixels="opencv")
    np.testing.assert_array_equal(view.mask(mask), arrays[f"resized/{case}/label"])


def test_the_rule_of_nearest_is_not_the_obvious_one():
    new = np.arange(180)
    obvious = new[:147] * 3 // 147  # 49 * (1 / 49) is below 1
    assert np.flatnonzero(opencv.nearest(3, 147, new[:147]) != obvious).tolist() == [49, 98]
    np.testing.assert_array_equal(opencv.nearest(90, 180, new), new // 2)


@needs_numba
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (37, 53), (64, 40)])
@pytest.mark.parametrize("new_size", [(1, 1), (2, 31), (40, 3), (37, 53), (100, 81)])
def test_both_implementations_agree(size, new_size):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*size[::-1], 3), np.uint8)
    whole = (0, 0, *new_size)
    expected = opencv.resize_window(image, new_size, whole, fast=False)
    image.flags.writeable = False
    np.testing.assert_array_equal(opencv.resize_window(image, new_size, whole), expected)
    mask = image[..., 0]
    columns, rows = (opencv.nearest(*s, np.arange(s[1])) for s in zip(size, new_size, strict=True))
    lookup = rng.permutation(256).astype(np.uint8)
    slow = opencv.take_labels(mask, rows, columns, lookup, fast=False)
    for mine, theirs in zip(opencv.take_labels(mask, rows, columns, lookup), slow, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(slow[0], lookup[mask][rows][:, columns])
    assert slow[1].sum() == slow[0].size


@pytest.mark.parametrize("fast", FAST)
@pytest.mark.parametrize("flip", [False, True])
def test_a_window_is_a_part_of_the_whole(fast, flip):
    image, size = photo(50, 30), (70, 44)
    whole = opencv.resize_window(image, size, (0, 0, *size), fast=fast)
    for left, top, right, bottom in ((0, 0, 20, 44), (13, 7, 70, 30), (69, 43, 70, 44)):
        part = opencv.resize_window(image, size, (left, top, right, bottom), flip=flip, fast=fast)
        expected = whole[top:bottom, left:right]
        np.testing.assert_array_equal(part, expected[:, ::-1] if flip else expected)


@pytest.mark.parametrize("flip", [False, True])
def test_a_view_is_black_beyond_the_image(flip):
    image = photo(50, 30)
    view = View((10, 5, 40, 25), (60, 40), (-7, -3, 66, 39), flip, pixels="opencv")
    inner = opencv.resize_window(image[5:25, 10:40], (60, 40), (0, 0, 60, 40))[:39]
    expected = np.pad(inner, ((3, 0), (7, 6), (0, 0)))
    np.testing.assert_array_equal(view.image(image), expected[:, ::-1] if flip else expected)
    mask = np.full((30, 50), 9, np.uint8)
    seen = view.mask(mask, fill=255)
    expected = np.pad(np.full((39, 60), 9), ((3, 0), (7, 6)), constant_values=255)
    np.testing.assert_array_equal(seen, expected[:, ::-1] if flip else expected)
