import dataclasses
import pickle

import numpy as np
import pytest

from tests import golden_det
from vig_jax.config import DetectionConfig
from vig_jax.data import open_dataset
from vig_jax.data.preprocess.detection import DetectionPreprocess
from vig_jax.data.preprocess.detection_views import DRAWS, DetectionViews, fit
from vig_jax.data.preprocess.instance_masks import cut_mask
from vig_jax.errors import ConfigError, DataSetError, UndecodableImageError
from vig_jax.ops import rle
from vig_jax.ops.paste import cut_to_box

SMALL = DetectionConfig(
    resize_scale=(96, 64),
    short_sides=(32, 48, 64),
    crop_short_sides=(40, 50),
    crop_sides=(24, 40),
    buckets=((64, 64), (64, 96), (96, 64), (96, 96)),
    max_boxes=4,
    mask_side=16,
)


class Fixed(np.random.Generator):
    """A generator whose numbers are given."""

    def __init__(self, *numbers):
        super().__init__(np.random.PCG64())
        self.numbers = np.array(numbers)

    def random(self, count):
        assert count == len(self.numbers)
        return self.numbers


def example(width=60, height=40, count=1, **changes):
    """A bright triangle on a dark image, `count` times."""
    corners = np.array([[10.0, 30], [50, 30], [50, 5]], np.float32)
    columns, rows = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    inside = (columns < 50) & (rows < 30) & (rows > 30 - 25 * (columns - 10) / 40)
    image = np.repeat((255 * inside).astype(np.uint8)[:, :, None], 3, axis=2)
    return {
        "image": image,
        "size": (width, height),
        "image_id": 2**31 + 7,
        "boxes": np.tile(np.array([[10, 5, 50, 30]], np.float32), (count, 1)),
        "labels": np.arange(count, dtype=np.int32),
        "segmentations": ((corners,),) * count,
    } | changes


@pytest.fixture
def made(make_data):
    def make(train=True, **changes):
        settings = {k: changes.pop(k) for k in ("hflip", "resize") if k in changes}
        data = make_data(**{"resize": "pillow", **settings})
        return DetectionPreprocess(data, dataclasses.replace(SMALL, **changes), train)

    return make


def test_sizes_are_those_of_mmdetection():
    for case in golden_det.facts("rules")["resize"]:
        size = np.array([case["size"][::-1]])
        for name in (name for name in case if name.startswith("mm_")):
            short, long = map(int, name.split("_")[1:])
            assert fit(size, long, short)[0].tolist() == case[name][::-1]


def test_every_image_has_the_smallest_bucket_that_holds_it():
    views = DetectionViews(DetectionConfig(), 0.5)
    sizes = {(640, 480): 0, (640, 427): 1, (640, 360): 2, (500, 30): 2, (612, 612): 0}
    sizes |= {(480, 640): 3, (427, 640): 4, (360, 640): 5, (30, 500): 5}
    found = views.buckets(views.evaluation(np.array(list(sizes))))
    assert found.tolist() == list(sizes.values())


@pytest.mark.parametrize("multi_scale", ["none", "resize", "resize_crop"])
def test_random_views_keep_their_limits_and_fit_their_buckets(multi_scale):
    task = dataclasses.replace(SMALL, multi_scale=multi_scale)
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 300, (2000, 2))
    draws = rng.random((2000, DRAWS))
    views = DetectionViews(task, 0.25)
    plans = views.training(sizes, draws)
    assert 0.2 < plans.flips.mean() < 0.3
    assert (plans.boxes[:, :2] >= 0).all()
    assert (plans.boxes[:, 2:] <= sizes).all()
    assert (plans.boxes[:, 2:] > plans.boxes[:, :2]).all()
    assert (plans.sizes.max(axis=1) <= 96).all()
    shapes = np.array(task.buckets)[views.buckets(plans)]
    assert (plans.sizes[:, ::-1] <= shapes).all()
    whole = (plans.boxes[:, 2:] - plans.boxes[:, :2] == sizes).all(axis=1)
    assert 0.45 < whole.mean() < 0.65 if multi_scale == "resize_crop" else whole.all()
    ordinary = (sizes.max(axis=1) < 1.5 * sizes.min(axis=1)) & whole
    assert set(plans.sizes[ordinary].min(axis=1)) == (
        {64} if multi_scale == "none" else {32, 48, 64}
    )
    if multi_scale == "resize_crop":  # in pixels of the image that is resized to 40 or 50
        short = np.array(task.crop_short_sides)[(draws[:, 3] * 2).astype(int)]
        resized = fit(sizes, 10**9, short)
        parts = (plans.boxes[:, 2:] - plans.boxes[:, :2])[~whole] * (resized / sizes)[~whole]
        rounding = (resized / sizes)[~whole].clip(1)
        least, most = (np.minimum(resized[~whole], side) for side in task.crop_sides)
        assert ((parts >= least - rounding) & (parts <= most + rounding)).all()


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [False, True])
@pytest.mark.parametrize("form", ["polygons", "rle", "bitmap"])
def test_image_boxes_and_masks_follow_one_view(made, flip, crop, form):
    given = example()
    bitmap = rle.decode(rle.from_coco([[10, 30, 50, 30, 50, 5]], 40, 60))
    if form == "rle":
        given["segmentations"] = (rle.encode(bitmap),)
    elif form == "bitmap":
        del given["segmentations"]
        given["instance_masks"] = bitmap[None]
    multi_scale = "resize_crop" if crop else "none"
    numbers = Fixed(0.2 if flip else 0.7, 0.9, 0.5, 0.5, 0.9, 0.9, 0.4, 0.4)
    found = made(multi_scale=multi_scale)(given, numbers)
    height, width = found["size"]
    assert (height, width) == ((48, 48) if crop else (64, 96))
    image = found["image"][:height, :width, 0] > 127
    assert not found["image"][height:].any()
    assert not found["image"][:, width:].any()
    assert found["valid"].tolist() == [True, False, False, False]
    scale = 48 / 31 if crop else 1.6  # the part of 31 pixels a side from 11, 3
    box = [0, 2 * scale, 48, 27 * scale] if crop else [16, 8, 80, 48]
    np.testing.assert_allclose(found["boxes"][0], box, rtol=1e-6)
    expected = cut_to_box(image, found["boxes"][0].astype(float), 16).astype(float)
    assert np.abs(found["masks"][0] - expected).mean() < 10  # of 255
    assert 0.35 < found["masks"][0].mean() / 255 < 0.85
    assert not found["masks"][1:].any()


def test_arrays_agree_with_the_spec(made):
    for train, bucket in ((True, (64, 96)), (False, (64, 96))):
        preprocess = pickle.loads(pickle.dumps(made(train)))
        found = preprocess(example(), np.random.default_rng(0) if train else None)
        kinds = {name: (array.shape, array.dtype) for name, array in found.items()}
        assert kinds == preprocess.spec_of(bucket)
        assert preprocess.bucket(60, 40) == bucket
        assert ("boxes" in found) == train
        assert found["original"].tolist() == [40, 60]
        np.testing.assert_allclose(found["scale"], [1.6, 1.6])
        assert found["image_id"] == 7
    assert "masks" not in made(masks=False)(example(), None)


def test_polygons_are_filled_at_the_new_size(made):
    golden = golden_det.facts("masks")
    height, width = golden["image"]
    for polygons in golden["polygons"]:
        points = tuple(np.reshape(p, (-1, 2)) for p in polygons)
        box = np.concatenate([np.concatenate(points).min(0), np.concatenate(points).max(0)])
        given = example(width, height, boxes=box[None].astype(np.float32), segmentations=(points,))
        found = made(hflip=0.0, resize_scale=(96, 96))(given, None)
        scale = found["size"][::-1] / np.array([width, height])
        filled = rle.from_coco([(p * scale).ravel() for p in points], *found["size"].tolist())
        expected = cut_to_box(rle.decode(filled), found["boxes"][0].astype(float), 16)
        np.testing.assert_array_equal(found["masks"][0], expected)


def test_a_flip_mirrors_boxes_and_masks(made):
    numbers = np.full(DRAWS - 1, 0.5)
    straight, flipped = (made()(example(), Fixed(flip, *numbers)) for flip in (0.9, 0.1))
    width = straight["size"][1]
    boxes = straight["boxes"][:1]
    np.testing.assert_allclose(
        flipped["boxes"][:1],
        np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1),
        atol=1e-5,
    )
    np.testing.assert_array_equal(flipped["masks"][0], straight["masks"][0][:, ::-1])
    np.testing.assert_array_equal(
        flipped["image"][:, :width], straight["image"][:, :width][:, ::-1]
    )


def test_of_too_many_boxes_the_smallest_are_left_out(made):
    given = example(count=6)
    given["boxes"][1, 2:] = [20, 15]
    given["boxes"][4, 2:] = [12, 15]
    found = made(hflip=0.0)(given, None)
    assert found["labels"].tolist() == [0, 2, 3, 5]
    assert found["valid"].all()
    given["boxes"][:, 2] = given["boxes"][:, 0]  # without area
    found = made()(given, None)
    assert not found["valid"].any()
    assert not any(found[name].any() for name in ("boxes", "labels", "masks"))


def test_faults_are_named(made):
    with pytest.raises(UndecodableImageError, match=r"60 x 40 pixels, but .* for 40 x 60"):
        made()(example(size=(40, 60)), None)
    without = example()
    del without["segmentations"]
    with pytest.raises(DataSetError, match=r"config\.task\.masks=False"):
        made()(without, None)
    assert made(masks=False)(without, None)["valid"].sum() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"buckets": ((64, 90),)}, r"side of 90 pixels.*use 96"),
        ({"buckets": ((64, 96),)}, r"none for images of 96 x 64 pixels.*add \(96, 64\)"),
        (
            {"short_sides": (80,), "multi_scale": "resize", "buckets": ((64, 96), (96, 64))},
            "80 x 96",
        ),
    ],
)
def test_buckets_must_hold_all_images(made, changes, message):
    with pytest.raises(ConfigError, match=message):
        made(**changes)


def test_scenes(make_data, made):
    source = open_dataset(make_data(source="fashion_scenes", image_size=64), "train")
    scene = source[3]
    found = made(resize_scale=(64, 64), hflip=0.0)(scene, None)
    count = len(scene["labels"])
    np.testing.assert_array_equal(found["image"], scene["image"])
    np.testing.assert_array_equal(found["boxes"][:count], scene["boxes"])
    assert found["valid"].sum() == count
    for cut, box, mask in zip(
        found["masks"], scene["boxes"].astype(float), scene["instance_masks"], strict=False
    ):
        np.testing.assert_array_equal(cut, cut_to_box(mask, box, 16))


def test_kernels_have_the_same_pixels(made):
    numbers = np.random.default_rng(1).random(DRAWS)
    slow, fast = (
        made(resize=kind, multi_scale="resize_crop")(example(), Fixed(*numbers))
        for kind in ("pillow", "auto")
    )
    for name in slow:
        np.testing.assert_array_equal(slow[name], fast[name])


def test_a_box_at_the_border_of_the_view():
    view = DetectionViews(SMALL, 0.0).evaluation(np.array([[48, 32]])).view(0)
    mask = np.ones((32, 48), bool)
    cut = cut_mask(mask, view, np.array([50.3, 20.2, 96, 64], np.float32), 8)
    assert (cut == 255).all()
