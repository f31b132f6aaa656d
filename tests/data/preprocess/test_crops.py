import collections

import numpy as np
import pytest
from PIL import Image

from tests.data.loading import eval_image, train_image
from tests.data.photographs import photo
from vig_jax.data.preprocess.decode import decode
from vig_jax.data.preprocess.geometry import random_resized_crop_box

PHOTO = photo(60, 45)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_distribution_of_random_resized_crops():
    draws = rng()
    boxes = np.array(
        [
            random_resized_crop_box(500, 375, (0.08, 1.0), (3 / 4, 4 / 3), draws)
            for _ in range(20000)
        ]
    )
    left, top, right, bottom = boxes.T
    assert left.min() == top.min() == 0
    assert (right.max(), bottom.max()) == (500, 375)
    width, height = right - left, bottom - top
    share = width * height / (500 * 375)
    assert np.mean(share) == pytest.approx(0.432, abs=0.006)
    assert np.median(share) == pytest.approx(0.419, abs=0.01)
    assert share.min() > 0.079
    assert (width / height).min() > 0.74
    assert (width / height).max() < 1.35
    # The place is uniform among those that fit: its mean is the middle, its spread that of a range.
    for start, free in ((left, 500 - width), (top, 375 - height)):
        place = (start[free > 50] + 0.5) / (free[free > 50] + 1)
        assert place.mean() == pytest.approx(0.5, abs=0.01)
        assert place.std() == pytest.approx(12**-0.5, abs=0.01)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (10, 100, (0, 43, 10, 56)),  # too high: width / (3/4) = 13 rows
        (100, 10, (43, 0, 56, 10)),
        (1, 1, (0, 0, 1, 1)),
    ],
)
def test_random_resized_crop_falls_back_to_the_centre(width, height, box):
    # The whole area never fits with another aspect than the image's.
    assert random_resized_crop_box(width, height, (1.0, 1.0), (3 / 4, 4 / 3), rng()) == box


def test_random_resized_crop_uses_no_pixel_outside(make_data):
    data = make_data(image_size=32, hflip=0.0)
    box = random_resized_crop_box(60, 45, data.crop_scale, data.crop_ratio, rng(3))
    left, top, right, bottom = box
    island = np.zeros_like(PHOTO)
    island[top:bottom, left:right] = PHOTO[top:bottom, left:right]
    cropped = train_image(decode(PHOTO), data, rng(3))
    np.testing.assert_array_equal(cropped, train_image(decode(island), data, rng(3)))
    alone = Image.fromarray(PHOTO[top:bottom, left:right])
    expected = np.asarray(alone.resize((32, 32), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(cropped, expected)


def test_flip_has_its_probability_and_mirrors(make_data):
    plain = photo(28, 28)
    for probability in (0.0, 0.3, 1.0):
        data = make_data(crop="none", hflip=probability)
        draws = rng()
        flips = 0
        for _ in range(500):
            image = train_image(decode(plain), data, draws)
            flipped = np.array_equal(image, plain[:, ::-1])
            assert flipped or np.array_equal(image, plain)
            flips += flipped
        assert flips / 500 == pytest.approx(probability, abs=0.07)


def test_pad_crop_moves_the_image_over_black(make_data):
    data = make_data(crop="pad", crop_padding=2, hflip=0.0)
    plain = np.maximum(photo(28, 28), 1)
    padded = np.pad(plain, ((2, 2), (2, 2), (0, 0)))
    places = {padded[y : y + 28, x : x + 28].tobytes(): (y, x) for y in range(5) for x in range(5)}
    draws = rng()
    seen = collections.Counter(
        places[train_image(decode(plain), data, draws).tobytes()] for _ in range(2500)
    )
    assert len(seen) == 25
    assert min(seen.values()) > 60


def test_small_images_are_enlarged(make_data):
    for crop in ("random_resized", "pad", "none"):
        data = make_data(crop=crop, crop_padding=4, image_size=40)
        for size in ((1, 1), (3, 50), (28, 28)):
            image = train_image(decode(photo(*size)), data, rng())
            assert image.shape == (40, 40, 3)
            assert image.dtype == np.uint8


def test_views_are_pure(make_data):
    image, data = decode(PHOTO), make_data()
    first = train_image(image, data, rng(5))
    np.testing.assert_array_equal(first, train_image(image, data, rng(5)))
    np.testing.assert_array_equal(np.asarray(image), PHOTO)
    assert not np.array_equal(first, train_image(image, data, rng(6)))


@pytest.mark.parametrize(
    ("size", "resized", "corner"),
    [
        # (341 - 224) / 2 = 58.5 goes to 58 and (381 - 224) / 2 = 78.5 to 78: the even ones.
        ((500, 375), (341, 256), (58, 16)),
        ((375, 500), (256, 341), (16, 58)),
        ((300, 447), (256, 381), (16, 78)),
        ((100, 100), (256, 256), (16, 16)),
        ((256, 400), (256, 400), (16, 88)),
    ],
)
def test_eval_resizes_and_takes_the_middle(make_data, size, resized, corner):
    image = Image.fromarray(photo(*size))
    left, top = corner
    expected = image.resize(resized, Image.Resampling.BICUBIC).crop(
        (left, top, left + 224, top + 224)
    )
    evaluated = eval_image(image, make_data(image_size=224))
    np.testing.assert_array_equal(evaluated, np.asarray(expected))


def test_eval_leaves_an_image_of_the_right_size_alone(make_data):
    plain = photo(28, 28)
    np.testing.assert_array_equal(eval_image(decode(plain), make_data(crop_pct=1.0)), plain)


def test_eval_of_a_strip_stays_small(make_data):
    # Only the middle is computed, because the whole would take gigabytes.
    strip = Image.fromarray(photo(2, 600))
    image = eval_image(strip, make_data(image_size=28))
    whole = strip.resize((32, 9600), Image.Resampling.BICUBIC).crop((2, 4786, 30, 4814))
    assert np.abs(image.astype(int) - np.asarray(whole)).max() <= 2
    assert eval_image(Image.new("RGB", (100_000, 1)), make_data(image_size=224)).any() == 0
