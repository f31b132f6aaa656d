"""Training crops are mmsegmentation's, step by step; evaluation images fill their buckets."""

import dataclasses
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests import golden_seg
from tests.data.photographs import encoded, photo
from vig_jax.config.tasks import SegmentationConfig
from vig_jax.data.preprocess import opencv
from vig_jax.data.preprocess.masks import label_lookup
from vig_jax.data.preprocess.protocol import BucketedPreprocess, Preprocess
from vig_jax.data.preprocess.segmentation import SegmentationPreprocess, training_arrays
from vig_jax.data.preprocess.segmentation_views import (
    CropDraws,
    TrainingViews,
    mask_side,
    scaled_size,
    sliding_side,
)
from vig_jax.errors import DataSetError, UndecodableImageError

GEOMETRY = golden_seg.facts("geometry")
PIPELINE = golden_seg.facts("pipeline")
AS_THEY_ARE = np.arange(256, dtype=np.uint8)
RATIO = (0.5, 2.0)
NAMES = {"class_names": ["a", "b", "c", "d"]}


def pairs(numbers):
    return tuple((int(y), int(x)) for y, x in zip(numbers[::2], numbers[1::2], strict=True))


@pytest.mark.parametrize("case", GEOMETRY["sizes"], ids=lambda c: "{h}x{w}-{u:.2f}".format(**c))
def test_sizes(case):
    views = TrainingViews((512, 512), (2048, 512), RATIO, 0.75, 0.5)
    resized = views.resized((case["w"], case["h"]), case["u"])
    assert resized == (case["new_w"], case["new_h"])


@pytest.mark.parametrize("case", GEOMETRY["resized"])
def test_given_sizes(case):
    height, width = golden_seg.load("geometry").arrays["label"].shape
    assert scaled_size((width, height), tuple(case["scale"])) == tuple(case["shape"][::-1])


@pytest.mark.parametrize("case", GEOMETRY["crop"]["cases"])
@pytest.mark.parametrize("fast", [False, True])
def test_the_class_rule_of_the_crop(case, fast):
    mask = golden_seg.load("geometry").arrays["crop/label"]
    height, width = GEOMETRY["crop"]["size"]
    views = TrainingViews(
        (height, width), mask.shape, (1.0, 1.0), GEOMETRY["crop"]["cat_max_ratio"], 0.0
    )
    candidates = tuple(map(tuple, case["offsets_yx"]))
    draws = CropDraws(0.0, candidates, False)
    view, labels, _ = views.view(mask, draws, AS_THEY_ARE, fast=fast)
    top, left = case["used"]
    assert view.window == (left, top, left + width, top + height)
    np.testing.assert_array_equal(labels, mask[top : top + height, left : left + width])


@pytest.mark.parametrize("case", range(len(PIPELINE["cases"])))
def test_image_and_mask_are_mmsegmentations(case):
    arrays = golden_seg.load("pipeline").below(f"{case}/")
    draws = PIPELINE["cases"][case]["draws"]
    views = TrainingViews(tuple(PIPELINE["crop"]), tuple(PIPELINE["scale"]), RATIO, 0.75, 0.5)
    offsets, flip = pairs(draws["RandomCrop"]), draws["RandomFlip"][0]
    made = CropDraws(draws["RandomResize"][0], offsets, flip)
    expected = arrays["RandomFlip/image_rgb"]
    height, width = expected.shape[:2]
    for image in (arrays["image_rgb"], Image.fromarray(arrays["image_rgb"])):
        found = training_arrays(image, arrays["label"], views, made, AS_THEY_ARE)
        assert found["size"].tolist() == [height, width]
        assert found["image"].shape == (*views.crop, 3)
        np.testing.assert_array_equal(found["image"][:height, :width], expected)
        assert not found["image"][height:].any()
        assert not found["image"][:, width:].any()
        np.testing.assert_array_equal(found["mask"], arrays["final_label"])


def test_draws():
    views = TrainingViews((20, 30), (80, 40), RATIO, 0.75, 0.25)
    rng = np.random.default_rng(0)
    draws = [views.draw((60, 40), rng) for _ in range(800)]
    uniform = np.array([d.uniform for d in draws])
    assert np.abs(np.quantile(uniform, [0.25, 0.5, 0.75]) - [0.25, 0.5, 0.75]).max() < 0.06
    assert np.mean([d.flip for d in draws]) == pytest.approx(0.25, abs=0.06)
    ends = np.zeros(2, int)
    for d in draws:
        width, height = views.resized((60, 40), d.uniform)
        offsets, free = np.array(d.offsets), np.array([max(height - 20, 0), max(width - 30, 0)])
        assert offsets.shape == (11, 2)
        assert (offsets >= 0).all()
        assert (offsets <= free).all()
        ends += (offsets == free).any(0)
    assert (ends > 80).all()  # the last place is used too
    no_rule = dataclasses.replace(views, max_share=1.0)
    assert len(no_rule.draw((60, 40), rng).offsets) == 1


@pytest.fixture
def make(make_data):
    def make_(train, image_size=32, metadata=NAMES, reduce=False, **task):
        settings = {"resize_scale": (128, 32), "eval_stride": 20, "resize_ratio": RATIO}
        data = make_data(image_size=image_size, **task.pop("data", {}))
        return SegmentationPreprocess(
            data,
            SegmentationConfig(**(settings | task)),
            label_lookup(metadata, reduce),
            train,
        )

    return make_


def example(width=60, height=45, **changes):
    mask = np.kron(np.arange(4).reshape(2, 2), np.ones((height, width)))[::2, ::2].astype(np.uint8)
    return {"image": photo(width, height), "mask": mask} | changes


def test_training(make):
    preprocess = pickle.loads(pickle.dumps(make(True, crop_max_share=0.75)))
    assert isinstance(preprocess, Preprocess)
    whole = example()
    files = {
        "image": encoded(whole["image"], "PNG"),
        "mask": encoded(Image.fromarray(whole["mask"]), "PNG"),
    }
    for seed in range(5):
        arrays = preprocess(files, np.random.default_rng(seed))
        spec = {name: (x.shape, x.dtype) for name, x in arrays.items()}
        assert spec == preprocess.spec
        again = preprocess(whole, np.random.default_rng(seed))
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, again[name])
        height, width = arrays["size"]
        inside = np.zeros((32, 32), bool)
        inside[:height, :width] = True
        assert (arrays["mask"][inside] < 4).all()
        assert (arrays["mask"][~inside] == 255).all()
    assert not np.array_equal(arrays["image"], preprocess(whole, np.random.default_rng(9))["image"])


def test_implementations_agree(make):
    files = example(image=encoded(photo(60, 45)))
    one, other = (make(True, data={"resize": name}) for name in ("auto", "pillow"))
    for seed in range(3):
        found = one(files, np.random.default_rng(seed))
        for name, array in other(files, np.random.default_rng(seed)).items():
            np.testing.assert_array_equal(found[name], array)


def test_workers_do_not_import_jax():
    code = "import sys, vig_jax.data.preprocess.segmentation as _; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_numba_is_required_but_missing(make, monkeypatch):
    from vig_jax.data.preprocess import resize

    monkeypatch.setattr(resize, "why_not", lambda: "numba is not installed")
    with pytest.raises(DataSetError, match=r"config\.data\.resize=numba, but numba is not"):
        make(True, data={"resize": "numba"})


@pytest.mark.parametrize(
    ("side", "canvas"), [(10, 10), (32, 32), (33, 52), (52, 52), (53, 72), (99, 112)]
)
def test_windows_cover_the_canvas(side, canvas):
    assert sliding_side(side, 32, 20) == canvas


def test_sides_of_masks():
    sides = [mask_side(n) for n in range(1, 5000)]
    assert sorted(set(sides)) == [256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144]
    assert all(side >= n for n, side in enumerate(sides, start=1))
    assert [mask_side(n) for n in (256, 257, 768, 769, 1025)] == [256, 512, 768, 1024, 1536]


def test_sliding_windows(make):
    preprocess = make(False, eval_scales=(1.0, 1.5))
    assert isinstance(preprocess, BucketedPreprocess)
    whole = example()
    arrays = preprocess(whole, None)
    spec = preprocess.spec_of(preprocess.bucket(60, 45))
    assert {name: (x.shape, x.dtype) for name, x in arrays.items()} == spec
    for i, (long, short) in enumerate(((128, 32), (192, 48))):
        width, height = scaled_size((60, 45), (long, short))
        assert arrays[f"size_{i}"].tolist() == [height, width]
        resized = opencv.resize_window(whole["image"], (width, height), (0, 0, width, height))
        image = arrays[f"image_{i}"]
        np.testing.assert_array_equal(image[:height, :width], resized)
        assert image.shape == (*(sliding_side(n, 32, 20) for n in (height, width)), 3)
        assert not image[:, width:].any()
    assert arrays["original"].tolist() == [45, 60]
    np.testing.assert_array_equal(arrays["mask"][:45, :60], whole["mask"])
    assert (arrays["mask"][45:] == 255).all()
    assert (arrays["mask"][:, 60:] == 255).all()


def test_very_long_images_keep_a_side_of_32_pixels(make):
    preprocess = make(False)
    arrays = preprocess.evaluation_images(np.zeros((10, 900, 3), np.uint8))
    assert scaled_size((900, 10), (128, 32)) == (128, 1)
    assert arrays["size"].tolist() == [32, 128]
    spec = preprocess.spec_of(preprocess.bucket(900, 10))
    assert arrays["image"].shape == spec["image"][0] == (32, sliding_side(128, 32, 20), 3)


def test_several_scales_have_few_shapes_of_windows(make):
    preprocess = make(False, eval_scales=(0.5, 1.5))
    arrays = preprocess.evaluation_images(np.zeros((45, 60, 3), np.uint8))
    assert scaled_size((60, 45), (64, 16)) == (21, 16)
    assert arrays["size_0"].tolist() == [32, 32]
    assert arrays["size_1"].tolist() == [48, 64]  # larger than the window: as it is


def test_whole_images_have_sides_of_whole_tokens(make):
    preprocess = make(False, eval_mode="whole")
    arrays = preprocess(example(), None)
    assert scaled_size((60, 45), (128, 32)) == (43, 32)
    assert arrays["size"].tolist() == [32, 64]
    expected = opencv.resize_window(example()["image"], (64, 32), (0, 0, 64, 32))
    np.testing.assert_array_equal(arrays["image"], expected)
    assert preprocess.spec_of(preprocess.bucket(60, 45))["image"][0] == (32, 64, 3)


def test_zero_is_reduced(make):
    arrays = make(False, reduce=True)(example(), None)
    assert np.unique(arrays["mask"]).tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mask": np.zeros((44, 60), np.uint8)}, "60 x 45 pixels, its mask 60 x 44"),
        ({"mask": np.full((45, 60), 77, np.uint8)}, "the label 77, which has no class"),
        ({"mask": np.full((45, 60), 255, np.uint8)}, "all pixels of the mask are ignored"),
        ({"size": (60, 44)}, r"60 x 45 pixels, but its header had \(60, 44\)"),
        ({"mask": b""}, "the file is empty"),
        ({"image": b"no image"}, "not a JPEG"),
    ],
)
@pytest.mark.parametrize("train", [True, False])
def test_bad_examples(make, changes, message, train):
    preprocess = make(train)
    with pytest.raises(UndecodableImageError, match=message):
        preprocess(example(**changes), np.random.default_rng(0) if train else None)
    with pytest.raises(UndecodableImageError, match=message):
        preprocess(example(**changes), None)  # the reason is looked for without a generator


def test_a_crop_may_be_without_labels(make):
    mask = np.full((45, 60), 255, np.uint8)
    mask[0, 0] = 1
    preprocess = make(True, resize_ratio=(1.99, 2.0))
    found = [preprocess(example(mask=mask), np.random.default_rng(s))["mask"] for s in range(6)]
    assert any((labels == 255).all() for labels in found)


def test_damage_is_reported(make):
    pytest.importorskip("simplejpeg")
    contents = encoded(photo(60, 45), quality=95)
    start = contents.index(b"\xff\xda") + 200
    damaged = contents[:start] + bytes(40) + contents[start + 40 :]
    arrays = make(True)(example(image=damaged), np.random.default_rng(0))
    assert "damaged" in arrays
