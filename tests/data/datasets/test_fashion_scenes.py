import hashlib
import itertools
import pickle

import numpy as np
import pytest

from vig_jax.data import Dataset, open_dataset
from vig_jax.data.dataset import DetectionDataset
from vig_jax.data.datasets import fashion_mnist, fashion_scenes
from vig_jax.data.datasets.fashion_scenes import FashionScenesDataset
from vig_jax.ops import rle

SCENES = 60


@pytest.fixture(scope="module")
def scenes():
    dataset = FashionScenesDataset("train")
    return [dataset[i] for i in range(SCENES)]


def digest(example):
    arrays = [x.tobytes() for x in example.values() if isinstance(x, np.ndarray)]
    return hashlib.sha256(b"".join(arrays)).hexdigest()[:12]


def test_it_is_opened_by_name(make_data):
    train, held_out = (
        open_dataset(make_data(source="fashion_scenes", image_size=32), split)
        for split in ("train", "eval")
    )
    assert isinstance(train, Dataset)
    assert (len(train), len(held_out)) == (4000, 500)
    assert train.name_of(7) == "fashion_scenes/train/7"
    assert held_out.sizes().tolist() == [[32, 32]] * 500
    assert train.info.metadata["class_names"][:2] == ("background", "T-shirt/top")
    last = train[3999]
    assert (last["size"], last["image_id"]) == ((32, 32), 3999)
    arrays = {name: x for name, x in last.items() if isinstance(x, np.ndarray)}
    assert {name: (x.shape[-2:], x.dtype) for name, x in arrays.items()} == {
        "image": ((32, 3), np.uint8),
        "mask": ((32, 32), np.uint8),
        "boxes": ((len(last["labels"]), 4), np.float32),
        "labels": ((len(last["boxes"]),), np.int32),
        "instance_masks": ((32, 32), np.bool_),
    }
    for index in (-1, 500):
        with pytest.raises(IndexError):
            held_out[index]


def test_scenes_are_pinned():
    """Whoever changes a scene must change `RECIPE`, and with it the fingerprint."""
    train, held_out = (FashionScenesDataset(split) for split in ("train", "eval"))
    assert [digest(train[i]) for i in (0, 1)] == ["7c56996f6878", "d7ac4e1031da"]
    assert digest(held_out[0]) == "b0d4d07b7d39"
    assert digest(FashionScenesDataset("eval", side=96)[0]) == "7fc32128f938"
    prints = [source.info.fingerprint[:12] for source in (train, held_out)]
    assert prints == ["1f4eec5da394", "923ce3f7173f"]


def test_fingerprint_and_pickle():
    source = FashionScenesDataset("eval", side=40, length=9)
    example = source[8]
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000
    again = pickle.loads(pickled)
    assert again.info.fingerprint == source.info.fingerprint
    assert digest(again[8]) == digest(example)
    others = [("train", 40, 9), ("eval", 41, 9), ("eval", 40, 8)]
    prints = {FashionScenesDataset(*other).info.fingerprint for other in others}
    assert len(prints | {source.info.fingerprint}) == 4


def test_truth_for_evaluation_has_the_instances():
    source = FashionScenesDataset("eval", length=3)
    assert isinstance(source, DetectionDataset)
    assert source.info.metadata["instance_names"][0] == "T-shirt/top"
    example, truth = source[2], source.ground_truth(2)
    assert (truth.image_id, truth.size) == (example["image_id"], example["size"]) == (2, (64, 64))
    assert len(truth.boxes) == len(truth.ids) == len(example["labels"]) > 0
    assert not truth.crowd.any()
    for stored, area, mask in zip(truth.masks, truth.areas, example["instance_masks"], strict=True):
        np.testing.assert_array_equal(rle.decode(stored), mask)
        assert area == mask.sum()


def test_instances_agree_with_the_mask(scenes):
    for scene in scenes:
        masks, labels = scene["instance_masks"], scene["labels"]
        assert len(masks) == len(labels) == len(scene["boxes"]) <= 6
        assert masks.sum(axis=0).max() <= 1  # one object is in front
        for mask, label, box in zip(masks, labels, scene["boxes"], strict=True):
            assert (scene["mask"][mask] == label + 1).all()
            y, x = np.nonzero(mask)
            assert box.tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
            assert mask.sum() >= 12


def test_hidden_objects_are_in_the_mask_only(scenes):
    hidden = [
        np.count_nonzero((scene["mask"] > 0) & ~scene["instance_masks"].any(axis=0))
        for scene in scenes
    ]
    assert 0 < np.count_nonzero(hidden) < SCENES / 4
    assert max(hidden) > 12  # 15 % of a silhouette may be more


def test_scenes_vary(scenes):
    counts = np.bincount(np.concatenate([scene["labels"] for scene in scenes]), minlength=10)
    assert counts.min() >= 8
    assert {len(scene["labels"]) for scene in scenes} >= {2, 3, 4, 5}
    boxes = np.concatenate([scene["boxes"] for scene in scenes])
    assert boxes.min() == 0
    assert boxes.max() == 64
    assert 0.2 < np.mean([np.mean(scene["mask"] > 0) for scene in scenes]) < 0.6


def test_brightness_does_not_give_products_away(scenes):
    """Measures how well a threshold separates products from background: 1/2 is chance."""
    gray = np.stack([scene["image"] for scene in scenes]).mean(axis=-1)
    product = np.stack([scene["mask"] for scene in scenes]) > 0
    levels = np.linspace(0, 256, 65)
    inside, outside = (
        np.cumsum(np.histogram(gray[where], levels)[0]) / np.count_nonzero(where)
        for where in (product, ~product)
    )
    assert 0.3 < np.trapezoid(inside, outside) < 0.75
    assert np.mean([scene["image"][scene["mask"] == 0].std() for scene in scenes]) > 30


def test_splits_show_different_photographs(monkeypatch):
    """Blank photographs of one split change its own scenes only."""
    images, labels = fashion_mnist.read_files()
    positions = dict(zip(("train", "eval"), fashion_mnist.split_positions(labels), strict=True))
    sources = {split: FashionScenesDataset(split, length=4) for split in positions}
    before = {split: [digest(source[i]) for i in range(4)] for split, source in sources.items()}
    for blank, split in itertools.product(positions, sources):
        changed = images.copy()
        changed[positions[blank]] = 0
        with monkeypatch.context() as patch:
            patch.setattr(fashion_mnist, "read_files", lambda x=changed: (x, labels))
            fashion_scenes._photographs.cache_clear()
            after = [digest(sources[split][i]) for i in range(4)]
        assert (after == before[split]) == (blank != split)
    fashion_scenes._photographs.cache_clear()


def test_a_silhouette_has_neither_stray_pixels_nor_pinholes():
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 8:20, 8:20] = 200
    expected = image > 0
    image[0, 12, 12] = 0  # a pinhole
    image[0, 2, 2] = 200  # a stray pixel
    image[0, 4:8, 10] = 2  # as dark as the ground
    np.testing.assert_array_equal(fashion_scenes._silhouettes(image), expected)


def test_larger_scenes_are_the_same_scenes(scenes):
    large = FashionScenesDataset("train", side=128)
    same = [np.mean(large[i]["mask"][::2, ::2] == scenes[i]["mask"]) for i in range(10)]
    assert np.mean(same) > 0.93


def test_colors_differ():
    palette = np.array(fashion_scenes.PALETTE, float)
    assert len(palette) == len(fashion_scenes.CLASS_NAMES) == 11
    distances = np.linalg.norm(palette[:, None] - palette, axis=-1)
    assert distances[~np.eye(11, dtype=bool)].min() > 50
