"""The solar cells, on a made-up package of the same form."""

import collections
import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from configs import elpv as page
from tests.data.loading import eval_image
from vig_jax.config import parse
from vig_jax.data import open_dataset
from vig_jax.data.datasets.elpv import find_folder, split_positions
from vig_jax.data.preprocess.decode import decode
from vig_jax.errors import DataSetError

DATA = parse(page.get_config()).data


@pytest.fixture
def package(tmp_path, monkeypatch):
    data = tmp_path / "elpv_dataset" / "data"
    (data / "images").mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise ImportError('nobody needs to run this')")
    kinds = ["0.0  mono", "0.3333333333333333  poly", "0.6666666666666666  mono", "1.0  poly"]
    with (data / "labels.csv").open("w") as file:
        for i in range(24):
            Image.fromarray(np.full((30, 30), i, np.uint8)).save(data / f"images/cell{i:04}.png")
            file.write(f"images/cell{i:04}.png  {kinds[i % 4]}\n")
    monkeypatch.syspath_prepend(tmp_path)
    return data


def test_split_and_rule(package):
    assert find_folder() == package
    train, held_out = (open_dataset(DATA, split) for split in ("train", "eval"))
    assert (len(train), len(held_out)) == (18, 6)
    assert train.class_names == ("functional", "defective")
    numbers = collections.Counter()
    for source in (train, held_out):
        labels = collections.Counter()
        for i in range(len(source)):
            number = int(source.name_of(i).removeprefix("images/cell").removesuffix(".png"))
            example = source[i]
            image = decode(example["image"])
            assert image.mode == "RGB"
            assert image.getpixel((3, 3)) == (number,) * 3
            assert example["label"] == source.labels()[i] == (number % 4 >= 2)
            labels[example["label"]] += 1
            numbers[number] += 1
        assert labels[0] == pytest.approx(labels[1], abs=2)
    assert numbers == collections.Counter(range(24))
    small = dataclasses.replace(DATA, image_size=24)
    assert eval_image(decode(train[0]["image"]), small).shape == (24, 24, 3)


def test_fingerprint(package):
    train, held_out = (open_dataset(DATA, split) for split in ("train", "eval"))
    fingerprint = train.info.fingerprint
    assert pickle.loads(pickle.dumps(train)).info.fingerprint == fingerprint
    assert held_out.info.fingerprint != fingerprint
    (package / train.name_of(0)).write_bytes(b"changed")
    assert open_dataset(DATA, "train").info.fingerprint != fingerprint


def test_every_stratum_is_shared_alike():
    strata = ["a"] * 41 + ["b"] * 8 + ["c"] * 3
    train, held_out = split_positions(strata)
    assert sorted([*train, *held_out]) == list(range(52))
    count = collections.Counter(strata[i] for i in held_out)
    assert sum(count.values()) == 13
    assert count["a"] in (10, 11)
    assert count["b"] == 2
    again, _ = split_positions(strata)
    np.testing.assert_array_equal(train, again)


def test_the_message_for_an_absent_package_has_the_command(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(DataSetError, match=r"pip install elpv-dataset .*not for commercial use"):
        open_dataset(DATA, "train")
