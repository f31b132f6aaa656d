"""Splitting a data set that has no validation split."""

import dataclasses
import json

import numpy as np
import pytest

from tests.data.photographs import encoded, photo
from vig_jax.data import open_dataset
from vig_jax.data.convert import Options, convert, open_splits
from vig_jax.errors import DataSetError

SHARDED = ("array_record", "parquet", "tar")
SUFFIX = {"array_record": "arrayrecord", "parquet": "parquet", "tar": "tar"}


@pytest.fixture
def undivided(folder):
    """33 images in class folders: 1 ant, 13 cats, 8 dogs, 11 yaks."""
    (folder / "train" / "ant").mkdir()
    (folder / "train" / "ant" / "1.png").write_bytes(encoded(photo(9, 9), "PNG"))
    return folder / "train"


@pytest.mark.parametrize(
    ("fraction", "held_out"), [(0.1, [0, 1, 1, 1]), (0.25, [0, 3, 2, 3]), (0.99, [0, 12, 7, 10])]
)
def test_stratified_split_counts(undivided, opened, fraction, held_out):
    settings = {"split": "stratified", "val_fraction": fraction}
    train, val = (
        opened("image_folder", undivided, split, **settings) for split in ("train", "eval")
    )
    total = np.array([1, 13, 8, 11])
    assert np.bincount(val.labels(), minlength=4).tolist() == held_out
    assert np.bincount(train.labels()).tolist() == (total - held_out).tolist()
    names = [source.name_of(i) for source in (train, val) for i in range(len(source))]
    assert len(set(names)) == 33
    for source in (train, val):
        assert source.class_names == ("ant", "cat", "dog", "yak")
        assert [source[i]["label"] for i in range(len(source))] == source.labels().tolist()


def test_stratified_split_is_drawn_by_its_seed_and_pinned(undivided, opened):
    def held_out(seed):
        source = opened(
            "image_folder",
            undivided,
            "eval",
            split="stratified",
            val_fraction=0.25,
            split_seed=seed,
        )
        return [source.name_of(i) for i in range(len(source))], source.info.fingerprint

    assert held_out(0) == held_out(0)
    assert held_out(0)[0] != held_out(1)[0]
    assert held_out(0)[1] != held_out(1)[1]
    # Whoever changes this lets images that runs have trained on into their evaluation.
    names = [name.partition(".")[0] for name in held_out(0)[0]]
    assert names[:3] == ["cat/005", "cat/008", "cat/012"]
    assert names[3:] == ["dog/002", "dog/006", "yak/000", "yak/004", "yak/008"]


@pytest.mark.parametrize("kind", SHARDED)
def test_stratified_split_of_every_format(kind, undivided, opened, tmp_path):
    convert(
        open_splits(str(undivided), "image_folder"),
        tmp_path / "out",
        Options(to=kind, shuffle=False),
    )
    for split in ("train", "eval"):
        settings = {"split": "stratified", "val_fraction": 0.2}
        folder = opened("image_folder", undivided, split, **settings)
        source = opened(kind, tmp_path / "out", split, **settings)
        assert [source[i] for i in range(len(source))] == [folder[i] for i in range(len(folder))]


def test_stratified_split_of_what_is_divided(folder, opened, make_data):
    with pytest.raises(DataSetError, match="has a folder val already"):
        opened("image_folder", folder, split="stratified")
    with pytest.raises(DataSetError, match="has a validation split already"):
        open_dataset(make_data(split="stratified"), "train")
    for fraction in (0.0, 1.0):
        with pytest.raises(DataSetError, match="val_fraction"):
            opened("image_folder", folder / "train", split="stratified", val_fraction=fraction)


def test_a_class_may_be_called_train(tmp_path, opened):
    for name in ("train", "car"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.png").write_bytes(encoded(photo(9, 9, i), "PNG"))
    source = opened("image_folder", tmp_path, split="stratified")
    assert source.class_names == ("car", "train")


def test_older_configs_have_a_given_split(make_data):
    assert dataclasses.asdict(make_data())["split"] == "given"
    assert json.dumps(dataclasses.asdict(make_data()))
