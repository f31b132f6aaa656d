import importlib.resources

import numpy as np
import pytest

from tests.data.formats.test_mask_folder import labels, save, write
from tests.data.photographs import photo
from vig_jax.data import open_dataset
from vig_jax.data.preprocess.masks import decode_mask, label_lookup
from vig_jax.errors import ConfigError, DataSetError


@pytest.fixture
def open_(make_data):
    def opened(source, path, split="train"):
        return open_dataset(make_data(source=source, path=str(path)), split)

    return opened


def test_ade20k(tmp_path, open_):
    root = tmp_path / "ADEChallengeData2016"
    write(root, splits=("training", "validation"))
    save(root / "annotations/training/0.png", labels(40, 30) + np.uint8(148))  # 148 to 150
    for path in (tmp_path, root):
        dataset = open_("ade20k", path)
        assert [dataset.name_of(0), len(dataset)] == ["images/training/0.jpg", 6]
    metadata = dataset.info.metadata
    names, palette = metadata["class_names"], metadata["palette"]
    assert (len(names), names[0], names[149]) == (150, "wall", "flag")
    assert palette[:2] == [[120, 120, 120], [180, 120, 120]]
    lookup = label_lookup(metadata, True)
    assert lookup[[0, 1, 150, 255]].tolist() == [255, 0, 149, 255]
    with pytest.raises(ConfigError, match="the label 150, but there are 150 class names"):
        label_lookup(metadata, False)
    (root / "classes.txt").write_text("".join(f"mine {i}\n" for i in range(151)))
    own = open_("ade20k", root).info.metadata
    assert own["class_names"][150] == "mine 150"
    assert label_lookup(own, False)[[0, 150]].tolist() == [0, 150]


def test_the_packaged_table_is_described():
    folder = importlib.resources.files("vig_jax.data.datasets").joinpath("ade20k")
    origin = folder.joinpath("ORIGIN.md").read_text()
    size = len(folder.joinpath("classes.txt").read_bytes())
    assert f"{size:,}" in origin


def test_the_full_ade20k_is_another_data_set(tmp_path, open_):
    save(tmp_path / "images/ADE/training/a_seg.png", photo(9, 9))
    with pytest.raises(DataSetError, match="is the full ADE20K"):
        open_("ade20k", tmp_path)


def test_voc(tmp_path, open_):
    write(tmp_path, "JPEGImages", "SegmentationClass")
    lists = tmp_path / "ImageSets/Segmentation"
    with pytest.raises(DataSetError, match=r"train\.txt is missing"):
        open_("voc", tmp_path)
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("4\n2\n")
    (lists / "val.txt").write_text("1\n")
    dataset = open_("voc", tmp_path)
    assert [dataset.name_of(i) for i in range(2)] == ["JPEGImages/2.jpg", "JPEGImages/4.jpg"]
    assert len(open_("voc", tmp_path, "eval")) == 1
    metadata = dataset.info.metadata
    assert metadata["class_names"][15] == "person"
    assert metadata["palette"][15] == [192, 128, 128]
    assert metadata["palette"][20] == [0, 64, 128]


def test_listed_but_missing(tmp_path, open_, caplog):
    write(tmp_path, "JPEGImages", "SegmentationClass")
    lists = tmp_path / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("4\nabsent\n")
    assert len(open_("voc", tmp_path)) == 1
    assert "1 files are listed, but missing: absent" in caplog.text


def test_cityscapes(tmp_path, open_):
    for i, city in enumerate(("aachen", "bremen")):
        image = tmp_path / f"leftImg8bit/train/{city}/{city}_0_leftImg8bit.png"
        mask = tmp_path / f"gtFine/train/{city}/{city}_0_gtFine_labelIds.png"
        save(image, photo(40, 30, i))
        save(mask, np.where(labels(40, 30) == 0, 4, 26 + i).astype(np.uint8))
        save(mask.with_name(f"{city}_0_gtFine_color.png"), photo(40, 30))
    dataset = open_("cityscapes", tmp_path)
    assert dataset.name_of(1) == "leftImg8bit/train/bremen/bremen_0_leftImg8bit.png"
    metadata = dataset.info.metadata
    assert len(metadata["class_names"]) == len(metadata["palette"]) == 19
    lookup = label_lookup(metadata, False)
    names = [metadata["class_names"][c] for c in lookup[[7, 26, 33]]]
    assert names == ["road", "car", "bicycle"]
    assert (np.bincount(lookup)[[254, 255]] == [256 - 34 - 1, 34 - 19 + 1]).all()
    classes = lookup[decode_mask(dataset[1]["mask"])]
    assert set(np.unique(classes)) == {metadata["class_names"].index("truck"), 255}
    with pytest.raises(DataSetError, match="has no folder leftImg8bit/val"):
        open_("cityscapes", tmp_path, "eval")
