"""The fast path on the host gives Pillow's pixels, to the bit."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.data.loading import eval_batches, eval_image, train_batches, train_image
from tests.data.photographs import encoded, photo
from vig_jax.data import open_dataset
from vig_jax.data.preprocess import resize
from vig_jax.data.preprocess.decode import decode, load
from vig_jax.data.preprocess.geometry import random_resized_crop_box
from vig_jax.data.preprocess.jpeg import decode_jpeg
from vig_jax.errors import UndecodableImageError

needs_numba = pytest.mark.skipif(
    resize.why_not() is not None, reason=f"no fast resize: {resize.why_not()}"
)


def pillow(image, box, width, height, flip=False):
    resized = Image.fromarray(image).crop(box).resize((width, height), Image.Resampling.BICUBIC)
    if flip:
        resized = resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(resized)


@needs_numba
@pytest.mark.parametrize("picture", ["photo", "noise", "black and white"])
def test_crops_of_training(picture):
    rng = np.random.default_rng(0)
    image = photo(500, 375)
    if picture != "photo":
        image = rng.integers(0, 256, image.shape, np.uint8)
    if picture == "black and white":  # the cubic overshoots on both sides
        image = np.where(image < 128, 0, 255).astype(np.uint8)
    for number in range(60):
        box = random_resized_crop_box(500, 375, (0.01, 1.0), (1 / 3, 3.0), rng)
        flip = bool(number % 2)
        mine = resize.resize_box(image, box, 224, 224, flip)
        np.testing.assert_array_equal(mine, pillow(image, box, 224, 224, flip), str(box))


@needs_numba
@pytest.mark.parametrize("size", [(1, 1), (1, 90), (90, 1), (2, 3), (33, 64), (90, 70)])
@pytest.mark.parametrize("new_size", [(1, 1), (1, 7), (31, 33), (64, 33), (90, 70), (200, 5)])
def test_sizes(size, new_size):
    """Covers enlarging, reducing and copying, one axis or both, and incomplete blocks of rows."""
    image = np.random.default_rng(1).integers(0, 256, (*size[::-1], 3), np.uint8)
    box = (0, 0, *size)
    for flip in (False, True):
        mine = resize.resize_box(image, box, *new_size, flip)
        np.testing.assert_array_equal(mine, pillow(image, box, *new_size, flip))


@needs_numba
def test_either_axis_may_come_first():
    """Covers sizes around the ratio at which Pillow 13 changes the order of its passes."""
    image = np.random.default_rng(2).integers(0, 256, (160, 90, 3), np.uint8)
    for width in range(40, 90, 7):
        for height in range(40, 160, 3):
            box = (1, 0, 1 + width, height)
            mine = resize.resize_box(image, box, 48, 48)
            np.testing.assert_array_equal(mine, pillow(image, box, 48, 48), str(box))


def test_a_pillow_that_disagrees_is_noticed(monkeypatch, caplog):
    pytest.importorskip("numba")
    monkeypatch.setattr(resize, "resize_box", lambda image, box, w, h: np.zeros((h, w, 3)))
    assert "is not supported by the fast resize" in resize.why_not.__wrapped__()
    assert "is not supported by the fast resize" in caplog.text


TURNED = Image.Exif()
TURNED[0x0112] = 6  # by 90 degrees
JPEGS = {
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "4:2:0": {"subsampling": 2},
    "progressive": {"progressive": True},
    "RGB": {"keep_rgb": True},
    "poor": {"quality": 20},
    "turned by EXIF": {
        "exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    },
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize("size", [(61, 47), (1, 1), (64, 16)])
def test_decoded_pixels_are_pillows(name, size, make_data):
    contents = encoded(photo(*size), "JPEG", **JPEGS[name])
    loaded = load(contents, make_data())
    np.testing.assert_array_equal(loaded, np.asarray(decode(contents)))


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colours_are_left_to_pillow(mode, make_data):
    contents = encoded(Image.fromarray(photo(50, 40)).convert(mode))
    assert decode_jpeg(contents) is None
    loaded = load(contents, make_data())
    np.testing.assert_array_equal(loaded, np.asarray(decode(contents)))


def test_ordinary_jpegs_are_not_left_to_pillow():
    pytest.importorskip("simplejpeg")
    assert decode_jpeg(encoded(photo(50, 40))).shape == (40, 50, 3)
    assert decode_jpeg(encoded(photo(50, 40), "PNG")) is None


def test_damaged_and_enormous_files_are_left_to_pillow(monkeypatch, make_data):
    contents = encoded(photo(50, 40))
    for damaged in (contents[:-300], contents[:400], contents[:12]):
        assert decode_jpeg(damaged) is None
        with pytest.raises(UndecodableImageError):
            load(damaged, make_data())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # an error from twice that on
    assert decode_jpeg(contents) is None
    with pytest.raises(UndecodableImageError, match="bomb"):
        load(contents, make_data())


def test_arrays_are_checked_by_load_too(make_data):
    for array in (photo(5, 5).astype(np.float32), photo(5, 5)[..., 0]):
        with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\]"):
            load(array, make_data())


@needs_numba
@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
@pytest.mark.parametrize("size", [(500, 375), (30, 300), (32, 32), (3, 900)])
def test_arrays_and_images_become_the_same(crop, size, make_data):
    data = make_data(image_size=32, crop=crop, crop_padding=4)
    array = photo(*size)
    array.flags.writeable = False
    image = Image.fromarray(array)
    for seed in range(6):
        mine, theirs = (train_image(x, data, np.random.default_rng(seed)) for x in (array, image))
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(eval_image(array, data), eval_image(image, data))


@needs_numba
def test_batches_do_not_depend_on_the_implementation(folder, make_data):
    for split, batches in (("train", train_batches), ("eval", eval_batches)):
        data = make_data(source="image_folder", path=str(folder), image_size=24)
        source = open_dataset(data, split)
        settings = {"batch_size": 7} | ({"seed": 3} if split == "train" else {})
        found = {}
        for choice in ("numba", "pillow"):
            chosen = dataclasses.replace(data, resize=choice)
            with batches(source, chosen, **settings) as some:
                found[choice] = next(some)
        for name, array in found["numba"].items():
            np.testing.assert_array_equal(array, found["pillow"][name], name)


def test_numba_is_required_but_missing(folder, make_data, monkeypatch):
    monkeypatch.setattr(resize, "why_not", lambda: "numba is not installed (pip install ...)")
    data = make_data(source="image_folder", path=str(folder), resize="numba")
    with pytest.raises(ValueError, match=r"config.data.resize=numba, but numba is not installed"):
        train_batches(open_dataset(data, "train"), data, batch_size=4, seed=0)
    with train_batches(
        open_dataset(data, "train"), dataclasses.replace(data, resize="auto"), batch_size=4, seed=0
    ) as batches:
        assert next(batches)["image"].shape == (4, 28, 28, 3)
