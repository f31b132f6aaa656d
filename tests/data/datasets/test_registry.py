import dataclasses
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import encoded, photo
from vig_jax.data import open_dataset, register_dataset
from vig_jax.data.datasets.fashion_mnist import read_files, split_positions
from vig_jax.data.datasets.registry import SyntheticDataset
from vig_jax.data.formats.image_folder import ImageFolderDataset
from vig_jax.data.preprocess.decode import decode
from vig_jax.errors import DataSetError


def test_fashion_mnist_has_two_disjoint_balanced_splits(make_data):
    train, held_out = (open_dataset(make_data(), split) for split in ("train", "eval"))
    assert (len(train), len(held_out)) == (8000, 2000)
    assert np.bincount([train[i]["label"] for i in range(8000)]).tolist() == [800] * 10
    assert np.bincount([held_out[i]["label"] for i in range(2000)]).tolist() == [200] * 10
    names = {source.name_of(i) for source in (train, held_out) for i in range(len(source))}
    assert names == {f"fashion_mnist/test/{i}" for i in range(10_000)}


def test_fashion_mnist_split_is_pinned(make_data):
    _, labels = read_files()
    train, held_out = split_positions(labels)
    assert train[:5].tolist() == [0, 1, 2, 3, 5]
    assert held_out[:5].tolist() == [4, 10, 14, 15, 19]
    prints = [open_dataset(make_data(), split).info.fingerprint[:12] for split in ("train", "eval")]
    assert prints == ["62907ba317a5", "ac15aaad75b6"]


def test_fashion_mnist_images_are_gray_as_rgb(make_data):
    source = open_dataset(make_data(), "eval")
    images, labels = read_files()
    position = int(source.name_of(0).rpartition("/")[2])
    example = source[0]
    assert example["image"].shape == (28, 28, 3)
    assert example["image"].dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(example["image"][..., channel], images[position])
    assert source.class_names[labels[position]] == source.class_names[example["label"]]
    assert source.num_classes == 10


def test_synthetic_is_noise_and_repeats(make_data):
    source = open_dataset(make_data(source="synthetic", image_size=16), "train")
    again = open_dataset(make_data(source="synthetic", image_size=16), "train")
    assert source.num_classes == len(source.class_names) == 1000
    for i in (0, 1, len(source) - 1):
        image = source[i]["image"]
        np.testing.assert_array_equal(image, again[i]["image"])
        assert 100 < image.mean() < 155
    assert not np.array_equal(source[0]["image"], source[1]["image"])
    assert source.info.fingerprint != SyntheticDataset(16, 5).info.fingerprint


def test_image_folder_order_labels_and_names(make_data, folder):
    data = make_data(source="image_folder", path=str(folder))
    train, val = open_dataset(data, "train"), open_dataset(data, "eval")
    assert (len(train), len(val)) == (32, 7)
    assert train.class_names == val.class_names == ("cat", "dog", "yak")
    assert train.num_classes == 3
    names = [train.name_of(i) for i in range(len(train))]
    assert names == sorted(names)
    assert names[1] == "train/cat/001.PNG"
    assert val.name_of(3) == "val/dog/000.jpg"
    for i, name in enumerate(names):
        assert train[i]["image"] == (folder / name).read_bytes()
        assert train.class_names[train[i]["label"]] == name.split("/")[1]


def test_image_folder_looks_deeper_and_skips_what_is_no_image(make_data, folder):
    nested = folder / "train" / "yak" / "images" / "a"
    nested.mkdir(parents=True)
    (nested / "z.JPeG").write_bytes(encoded(photo(8, 8)))
    (folder / "train" / "yak" / "._000.jpg").write_bytes(b"left by another system")
    (folder / "train" / "yak" / "boxes.txt").write_text("0 0 1 1")
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / "readme.jpg").write_bytes(b"not in a class")
    (folder / "train" / "yak" / "loop").symlink_to(folder / "train" / "yak")
    source = open_dataset(make_data(source="image_folder", path=str(folder)), "train")
    assert len(source) == 33
    assert source.name_of(32) == "train/yak/images/a/z.JPeG"


def test_image_folder_takes_names_in_any_script(make_data, tmp_path):
    for name in ("größe", "猫"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / f"{name} 1.jpg").write_bytes(encoded(photo(8, 8)))
    source = open_dataset(make_data(source="image_folder", path=str(tmp_path)), "train")
    assert source.name_of(1) == "train/猫/猫 1.jpg"
    assert decode(source[1]["image"]).size == (8, 8)


def test_image_folder_evaluates_without_training_images(make_data, folder):
    shutil.rmtree(folder / "train")
    source = open_dataset(make_data(source="image_folder", path=str(folder)), "eval")
    assert source.class_names == ("cat", "dog", "yak")


def test_image_folder_is_compact_when_pickled(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i in range(2000):
        (tmp_path / "train" / "a" / f"n01440764_{i:05}.JPEG").touch()
    source = ImageFolderDataset(tmp_path, "train", ("a",))
    pickled = pickle.dumps(source)
    assert len(pickled) < 2000 * 40
    assert pickle.loads(pickled).name_of(1999) == "train/a/n01440764_01999.JPEG"


def test_fingerprint_follows_content_and_not_place(make_data, folder, tmp_path):
    def fingerprint(root, split="train"):
        return open_dataset(
            make_data(source="image_folder", path=str(root)), split
        ).info.fingerprint

    before = fingerprint(folder)
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    assert fingerprint(moved) == before
    assert fingerprint(moved, "eval") != before
    with (moved / "train" / "cat" / "000.jpg").open("ab") as file:
        file.write(b"one byte more or so")
    resized = fingerprint(moved)
    assert resized != before
    (moved / "train" / "cat" / "000.jpg").rename(moved / "train" / "cat" / "0.jpg")
    assert fingerprint(moved) not in (before, resized)


def test_a_registered_data_set_is_opened_by_its_name(make_data):
    def open_(data, split):
        return SyntheticDataset(data.image_size, 5 if split == "train" else 2)

    register_dataset("five of a kind", open_)
    data = make_data(source="five of a kind")
    train, held_out = (open_dataset(data, split) for split in ("train", "eval"))
    assert (len(train), len(held_out)) == (5, 2)
    for taken in ("five of a kind", "tar"):
        with pytest.raises(ValueError, match=f"'{taken}' is the name of a data set already"):
            register_dataset(taken, open_)


def test_unknown_source_suggests_the_nearest(make_data):
    with pytest.raises(DataSetError, match="did you mean 'fashion_mnist'"):
        open_dataset(make_data(source="fashionmnist"), "train")
    with pytest.raises(DataSetError, match=r"known: array_record, image_folder, parquet"):
        open_dataset(make_data(source="q"), "train")


def _without_train(root):
    shutil.rmtree(root / "train")
    (root / "training").mkdir()


def _shards(root):
    shutil.rmtree(root)
    (root / "train").mkdir(parents=True)
    (root / "train" / "0.tar").touch()


def _loose_images(root):
    shutil.rmtree(root / "val")
    (root / "val").mkdir()
    Image.new("RGB", (4, 4)).save(root / "val" / "1.png")


def _no_images(root):
    for file in (root / "val").rglob("*.*"):
        file.unlink()


def _empty_class(root):
    (root / "train" / "ant").mkdir()
    (root / "val" / "ant").mkdir()


def _other_classes(root):
    (root / "val" / "yak").rename(root / "val" / "Yak")


@pytest.mark.parametrize(
    ("spoil", "split", "message"),
    [
        (shutil.rmtree, "train", "is not a folder"),
        (_without_train, "train", "no folder 'train'; it has training, val"),
        (_shards, "train", r"\.tar files in it: --config\.data\.source=tar"),
        (_loose_images, "eval", "has 1 images, but no class folders"),
        (_no_images, "eval", "3 class folders, but no images"),
        (_empty_class, "train", "1 classes of .* have no images: ant"),
        (_other_classes, "eval", "1 classes that are missing from train: Yak; train has 1 .*: yak"),
    ],
)
def test_spoilt_folder_is_explained(make_data, folder, spoil, split, message):
    spoil(folder)
    with pytest.raises(DataSetError, match=message) as caught:
        open_dataset(make_data(source="image_folder", path=str(folder)), split)
    assert "cat/  001.jpg" in str(caught.value)
    assert "--config=configs/fashion_mnist.py" in str(caught.value)


def test_class_without_evaluation_images_needs_an_empty_folder(make_data, folder):
    data = make_data(source="image_folder", path=str(folder))
    shutil.rmtree(folder / "val" / "cat")
    with pytest.raises(DataSetError, match="train has 1 classes that are missing from val: cat"):
        open_dataset(data, "eval")
    (folder / "val" / "cat").mkdir()
    source = open_dataset(data, "eval")
    assert [source[i]["label"] for i in range(len(source))] == [1, 2, 2, 2]


def test_path_must_be_given(make_data):
    data = make_data(source="image_folder")
    with pytest.raises(DataSetError, match=r"config\.data\.path is not set"):
        open_dataset(data, "train")
    assert dataclasses.replace(data, path="~/no such folder") != data
    with pytest.raises(DataSetError, match="is not a folder"):
        open_dataset(dataclasses.replace(data, path="~/no such folder"), "train")
