"""The nuclei, on a made-up package of the same form."""

import pickle

import numpy as np
import pytest
from PIL import Image

from vig_jax.data import Dataset, open_dataset
from vig_jax.data.datasets import nuclei
from vig_jax.errors import DataSetError


def write(folder, name, array):
    Image.fromarray(array.astype(np.uint16)).save(folder / name)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An image of 32 x 64 pixels whose columns have their number as gray value."""
    folder = tmp_path / "stardist" / "data" / "images"
    folder.mkdir(parents=True)
    (tmp_path / "stardist" / "__init__.py").write_text("import tensorflow")
    write(folder, "img2d.tif", np.tile(np.arange(64), (32, 1)))
    objects = np.zeros((32, 64))
    objects[2:7, 1:6] = 9
    objects[4:10, 28:40] = 300  # across the middle
    objects[20:23, 40:45] = 4
    objects[30:32, 62:64] = 5  # too small
    write(folder, "mask2d.tif", objects)
    monkeypatch.syspath_prepend(tmp_path)
    return folder


@pytest.fixture
def opened(package, make_data):
    def open_(split, side):
        return open_dataset(make_data(source="nuclei", image_size=side), split)

    return open_


def test_halves(package, opened):
    assert nuclei.find_folder() == package
    train, held_out = opened("train", 32), opened("eval", 32)
    assert isinstance(train, Dataset)
    assert (len(train), len(held_out)) == (1, 1)
    assert held_out.sizes().tolist() == [[32, 32]]
    assert train.info.metadata["class_names"] == ("background", "nucleus")
    left, right = train[0], held_out[0]
    assert left["image"].shape == (32, 32, 3)
    assert left["image"][0, :, 1].tolist() == list(range(32))
    assert right["image"][0, :, 2].tolist() == list(range(32, 64))
    assert left["boxes"].tolist() == [[1, 2, 6, 7], [28, 4, 32, 10]]
    assert right["boxes"].tolist() == [[8, 20, 13, 23], [0, 4, 8, 10]]
    assert left["labels"].tolist() == [0, 0]
    assert left["instance_masks"].sum(axis=(1, 2)).tolist() == [25, 24]
    assert right["mask"].sum() == 15 + 48 + 4  # the smallest one is in the mask only
    with pytest.raises(IndexError):
        train[1]


def test_tiles(opened):
    train, held_out = opened("train", 16), opened("eval", 16)
    names = [source.name_of(i) for source in (train, held_out) for i in range(len(source))]
    assert len(names) == len(set(names)) == 3 * 3 + 2 * 2
    assert held_out.name_of(1) == "img2d.tif/eval/0,16"
    assert held_out[1]["image"][0, 0].tolist() == [48] * 3
    pixels = np.concatenate([train[i]["image"].ravel() for i in range(9)])
    assert set(pixels) == set(range(32))
    empty = held_out[1]
    assert empty["boxes"].shape == (0, 4)
    assert empty["instance_masks"].shape == (0, 16, 16)


def test_fingerprint(package, opened):
    train = opened("train", 16)
    pickled = pickle.dumps(train)
    assert len(pickled) < 2000
    assert pickle.loads(pickled).info.fingerprint == train.info.fingerprint
    assert opened("eval", 16).info.fingerprint != train.info.fingerprint
    nuclei._half.cache_clear()
    write(package, "mask2d.tif", np.ones((32, 64)))
    assert opened("train", 16).info.fingerprint != train.info.fingerprint


def test_what_cannot_be_opened(package, opened, make_data, monkeypatch):
    with pytest.raises(DataSetError, match=r"image_size=33 is larger .* 32 x 32 .* set 32 or less"):
        opened("train", 33)
    nuclei._half.cache_clear()
    write(package, "mask2d.tif", np.ones((32, 63)))
    with pytest.raises(DataSetError, match="of the same size and below 256: reinstall them"):
        opened("train", 16)
    (package / "mask2d.tif").write_bytes(b"damaged")
    with pytest.raises(DataSetError, match=r"mask2d\.tif cannot be read .*: reinstall it"):
        opened("train", 16)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataSetError, match="pip install --no-deps stardist"):
        opened("train", 16)
