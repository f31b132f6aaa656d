"""Images at their native sizes: their grids, their pixels, and rows of them."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import photo
from vig_jax.data.preprocess.native import NativePreprocess, RowShape, native_grids, split_patches
from vig_jax.errors import ConfigError, DataSetError

SHAPE = RowShape(patch_size=8, tokens=40, images=3, image_tokens=24)


def example(width, height, label=0):
    return {"image": photo(width, height, width), "label": label}


def unpacked(row, patch_size=8):
    """The images of a row, put together again."""
    start, found = 0, []
    for rows, columns in row["sizes"].tolist():
        part = row["patches"][start : start + rows * columns]
        grid = part.reshape(rows, columns, patch_size, patch_size, 3).swapaxes(1, 2)
        found.append(grid.reshape(rows * patch_size, columns * patch_size, 3))
        start += rows * columns
    assert not row["patches"][start:].any()
    return found


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((40, 24), (3, 5)),  # as it is
        ((43, 21), (3, 5)),  # rounded to whole patches
        ((2, 3), (1, 1)),
        ((400, 240), (4, 6)),  # the aspect is kept
        ((39, 39), (4, 4)),  # of 5 x 5, more than 24
        ((10_000, 1), (1, 24)),
        ((1, 10_000), (24, 1)),
        ((0, 0), (1, 1)),
    ],
)
def test_grids(size, grid):
    assert native_grids(np.array([size]), 8, 24).tolist() == [list(grid)]


def test_grids_have_at_most_their_tokens_and_nearly_the_aspect():
    sizes = np.random.default_rng(0).integers(1, 3000, (10_000, 2))
    grids = native_grids(sizes, 16, 196)
    assert grids.min() == 1
    assert grids.prod(axis=1).max() == 196
    exact = np.minimum(1, 14 * 16 / np.sqrt(sizes.prod(axis=1)))[:, None] * sizes[:, ::-1] / 16
    wide = exact.min(axis=1) >= 1
    assert np.abs(grids - exact)[wide].max() <= 1


def test_evaluation_keeps_the_pixels_of_the_whole_image(make_data):
    preprocess = NativePreprocess(make_data(crop_pct=0.5), SHAPE, train=False)
    given = [example(40, 24, 2), example(8, 16, 1)]
    arrays = [preprocess(one, None) for one in given]
    row = preprocess.row(arrays)
    kinds = {name: (array.shape, array.dtype) for name, array in row.items()}
    assert kinds == preprocess.spec
    assert row["sizes"].tolist() == [[3, 5], [2, 1], [0, 0]]
    assert row["label"].tolist() == [2, 1, 0]
    for found, one in zip(unpacked(row), given, strict=False):
        np.testing.assert_array_equal(found, one["image"])
    np.testing.assert_array_equal(row["patches"][0], given[0]["image"][:8, :8])


def test_other_sizes_are_resized_as_pillow_does(make_data):
    image = photo(90, 50, 3)
    arrays = NativePreprocess(make_data(), SHAPE, train=False)({"image": image, "label": 0}, None)
    expected = Image.fromarray(image).resize((48, 24), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(arrays["image"], np.asarray(expected))


@pytest.mark.parametrize("crop", ["random_resized", "pad", "none"])
def test_training_views(crop, make_data):
    """Crops have the pixels of the image, and depend on the generator alone."""
    data = make_data(crop=crop, crop_padding=3, crop_scale=(0.3, 0.9))
    shape = RowShape(patch_size=4, tokens=400, images=1, image_tokens=400)
    preprocess, given = NativePreprocess(data, shape, train=True), example(60, 52)
    views = [preprocess(given, np.random.default_rng(seed))["image"] for seed in range(20)]
    again = [preprocess(given, np.random.default_rng(seed))["image"] for seed in range(20)]
    assert all(np.array_equal(a, b) for a, b in zip(views, again, strict=True))
    flipped, tokens = 0, [view.shape[0] * view.shape[1] // 16 for view in views]
    if crop == "random_resized":
        assert 0.25 * 195 < min(tokens) < max(tokens) < 0.95 * 195
        assert len(set(tokens)) > 10
        return
    assert set(tokens) == {195}
    for view in views:
        if crop == "pad":  # a border of up to three pixels is black
            view = np.where(view[3:-3, 3:-3] > 0, view[3:-3, 3:-3], 1)
            windows = [given["image"][y:, x:] for y in range(7) for x in range(7)]
            windows = [np.maximum(window[:46, :54], 1) for window in windows]
        else:
            windows = [given["image"]]
        straight = any(np.array_equal(view, window) for window in windows)
        mirrored = any(np.array_equal(view[:, ::-1], window) for window in windows)
        assert straight != mirrored
        flipped += mirrored
    assert 0 < flipped < 20


def test_the_largest_images_of_a_full_row_are_reduced(make_data):
    preprocess = NativePreprocess(make_data(), SHAPE, train=True)
    arrays = [preprocess(example(*size), None) for size in ((48, 32), (16, 16), (48, 24))]
    row = preprocess.row(arrays)
    lengths = row["sizes"].prod(axis=1)
    assert lengths[1] == 4  # as it was
    assert 30 <= lengths.sum() <= 40  # of 46
    assert max(lengths) <= 18
    small = Image.fromarray(arrays[0]["image"]).resize(
        tuple(row["sizes"][0, ::-1] * 8), Image.Resampling.BICUBIC
    )
    np.testing.assert_array_equal(unpacked(row)[0], np.asarray(small))
    tight = NativePreprocess(make_data(), SHAPE._replace(tokens=3, image_tokens=3), train=True)
    assert tight.row(arrays)["sizes"].prod(axis=1).tolist() == [1, 1, 1]


def test_patches_are_row_by_row():
    image = np.arange(4 * 6 * 2).reshape(4, 6, 2)
    patches = split_patches(image, 2)
    assert patches.shape == (6, 2, 2, 2)
    np.testing.assert_array_equal(patches[4], image[2:4, 2:4])


def test_shapes_of_rows(make_data):
    data = make_data(image_size=28)
    assert RowShape.from_data(data, 4) == (4, 392, 8, 49)
    data = dataclasses.replace(data, max_tokens=60, row_images=4, row_tokens=100)
    assert RowShape.from_data(data, 4) == (4, 100, 4, 60)
    for changed in ({"row_tokens": 59}, {"row_images": 101}):
        with pytest.raises(ConfigError, match=r"row_tokens=\d+ is too small for an image of 60"):
            RowShape.from_data(dataclasses.replace(data, **changed), 4)


def test_labels_fit_into_32_bits(make_data):
    preprocess = NativePreprocess(make_data(), SHAPE, train=False)
    with pytest.raises(DataSetError, match="fit into 32 bits"):
        preprocess(example(8, 8, 2**31), None)
