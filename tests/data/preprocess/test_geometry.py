"""Masks and boxes follow the image; the pixels themselves are judged in test_resize.py."""

import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import photo
from vig_jax.data.preprocess.geometry import View, draw_view, eval_view

WIDTH, HEIGHT = 60, 45
VIEWS = {
    "crop": View((10, 5, 50, 35), (40, 30), (0, 0, 40, 30)),
    "enlarged": View((10, 5, 50, 35), (80, 90), (0, 0, 80, 90)),
    "reduced": View((0, 0, 60, 45), (30, 30), (0, 0, 30, 30)),
    "window": View((0, 0, 60, 45), (60, 45), (7, 3, 47, 43)),
    "padded": View((0, 0, 60, 45), (60, 45), (-6, -4, 54, 41)),
    "flipped": View((10, 5, 50, 35), (40, 60), (-4, 2, 36, 42), flip=True),
}


@pytest.fixture(params=VIEWS)
def view(request):
    return VIEWS[request.param]


def rectangle(left, top, right, bottom):
    mask = np.zeros((HEIGHT, WIDTH), np.int32)
    mask[top:bottom, left:right] = 7
    return mask


def bounds(mask):
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return columns[0], rows[0], columns[-1] + 1, rows[-1] + 1


@pytest.mark.parametrize("as_array", [False, True])
def test_image_mask_and_box_follow_each_other(view, as_array):
    box = (20, 12, 34, 24)
    mask = rectangle(*box)
    image = np.repeat((mask > 0)[..., None] * np.uint8(200), 3, axis=-1)
    pixels = view.image(image if as_array else Image.fromarray(image))
    seen = view.mask(mask)
    assert pixels.shape[:2] == seen.shape == view.shape
    assert seen.dtype == mask.dtype
    assert set(np.unique(seen)) == {0, 7}
    (moved,) = view.boxes(np.array([box], np.float32))
    # The mask has whole pixels, and the image's edge is where it passes half of its brightness.
    assert np.abs(bounds(seen) - moved).max() <= 0.5
    assert np.abs(bounds(pixels[..., 0] > 100) - moved).max() <= 1


def test_a_mask_takes_the_nearest_pixel(view):
    mask = np.arange(HEIGHT * WIDTH, dtype=np.int64).reshape(HEIGHT, WIDTH)
    seen = view.mask(mask, fill=-1)
    left, top, right, bottom = view.box
    # Pillow's nearest filter, of the box and as large as if no window was cut out.
    rows = Image.fromarray(mask[top:bottom, left:right].astype(np.int32))
    whole = np.asarray(rows.resize(view.size, Image.Resampling.NEAREST))
    padded = np.pad(whole, 10, constant_values=-1)
    x0, y0, x1, y1 = (side + 10 for side in view.window)
    expected = padded[y0:y1, x0:x1]
    np.testing.assert_array_equal(seen, expected[:, ::-1] if view.flip else expected)
    several = view.mask(np.stack([mask, mask], axis=-1), fill=-1)
    np.testing.assert_array_equal(several[..., 1], seen)


def test_boxes_are_clipped_and_flipped():
    view = View((0, 0, 60, 45), (120, 90), (20, 0, 120, 90), flip=True)
    boxes = np.array([[30.0, 0, 40, 45], [0, 0, 20, 10], [0, 0, 5, 5]])
    moved = view.boxes(boxes)
    np.testing.assert_allclose(moved, [[40, 0, 60, 90], [80, 0, 100, 20], [100, 0, 100, 10]])
    assert view.boxes(np.zeros((0, 4))).shape == (0, 4)


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_a_drawn_view_shows_the_same_part_of_image_and_mask(crop, make_data):
    """A mask of positions says where each pixel of the result comes from."""
    data = make_data(image_size=32, crop=crop, crop_padding=3, crop_scale=(0.2, 0.6))
    image = photo(WIDTH, HEIGHT)
    smooth = np.asarray(Image.fromarray(image).resize((6, 5)).resize((WIDTH, HEIGHT)))
    flips = set()
    for seed in range(6):
        view = draw_view((WIDTH, HEIGHT), data, np.random.default_rng(seed))
        shown = view.image(Image.fromarray(smooth)).astype(int)
        nearest = view.mask(smooth)
        assert np.abs(shown - nearest).mean() < 6
        flips.add(view.flip)
    assert flips == {False, True}


def test_the_view_of_evaluation_is_the_middle(make_data):
    data = make_data(image_size=32, crop_pct=0.8)
    view = draw_view((WIDTH, HEIGHT), data, None)
    assert view == eval_view((WIDTH, HEIGHT), (32, 32), 0.8)
    assert view == View((0, 0, 60, 45), (53, 40), (10, 4, 42, 36))
    (whole,) = view.boxes(np.array([[0.0, 0, 60, 45]]))
    assert whole.tolist() == [0, 0, 32, 32]


@pytest.mark.parametrize(
    ("size", "crop_pct", "resized", "window"),
    [
        ((100, 200), 1.0, (32, 64), (0, 0, 32, 64)),
        ((100, 100), 1.0, (64, 64), (16, 0, 48, 64)),
        ((100, 400), 1.0, (32, 128), (0, 32, 32, 96)),
        ((400, 100), 0.8, (320, 80), (144, 8, 176, 72)),
    ],
)
def test_a_view_that_is_not_square_covers_the_middle(size, crop_pct, resized, window):
    view = eval_view(size, (64, 32), crop_pct)
    assert (view.size, view.window) == (resized, window)
