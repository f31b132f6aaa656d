import os
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import encoded, photo
from vig_jax.config.tasks import SegmentationConfig
from vig_jax.data import BadImages, eval_batches, open_dataset, train_batches
from vig_jax.data.formats.label_table import colours, parse_table
from vig_jax.data.formats.mask_folder import random_positions
from vig_jax.data.preprocess.masks import label_lookup
from vig_jax.data.preprocess.protocol import SizedDataset
from vig_jax.data.preprocess.segmentation import SegmentationPreprocess
from vig_jax.errors import ConfigError, DataSetError

SIZES = ((40, 30), (30, 44), (36, 36), (52, 30), (40, 30), (33, 47))


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(array, "PNG" if path.suffix == ".png" else "JPEG", **options))


def labels(width, height, number=0, classes=3):
    return (np.add.outer(np.arange(height) // 9, np.arange(width) // 9 + number) % classes).astype(
        np.uint8
    )


def write(root, images="images/{}", masks="annotations/{}", splits=("train", "val")):
    """Six pairs for training and two for evaluation, of three classes."""
    number = 0
    for split, count in zip(splits, (6, 2), strict=True):
        for i in range(count):
            size = SIZES[number % len(SIZES)]
            save(root / images.format(split) / f"{i}.jpg", photo(*size, number))
            save(root / masks.format(split) / f"{i}.png", labels(*size, number))
            number += 1
    return root


@pytest.fixture
def root(tmp_path):
    return write(tmp_path / "scenes")


@pytest.fixture
def open_(make_data):
    def opened(path, part="train", **changes):
        return open_dataset(make_data(source="mask_folder", path=str(path), **changes), part)

    return opened


def test_pairs_and_facts(root, open_):
    (root / "classes.txt").write_text("sky\nroad #0a0b0c\nlow wall\n")
    dataset = open_(root)
    assert isinstance(dataset, SizedDataset)
    assert [dataset.name_of(i) for i in range(6)] == [f"images/train/{i}.jpg" for i in range(6)]
    assert dict(dataset.info.metadata) == {
        "class_names": ("sky", "road", "low wall"),
        "palette": [[0, 0, 0], [10, 11, 12], [0, 128, 0]],
    }
    assert dataset[4]["mask"] == (root / "annotations/train/4.png").read_bytes()
    assert "size" not in dataset[4]
    np.testing.assert_array_equal(dataset.sizes(), SIZES)
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[1]["size"] == SIZES[1]
    assert copy.info == dataset.info
    with pytest.raises(IndexError):
        dataset[6]


def test_the_fingerprint_is_of_names_classes_and_sizes_of_files(root, open_, tmp_path):
    before = open_(root).info.fingerprint
    moved = shutil.copytree(root, tmp_path / "elsewhere")
    assert open_(moved).info.fingerprint == before
    assert open_(root, "eval").info.fingerprint != before
    with (root / "images/train/2.jpg").open("ab") as file:
        file.write(b"0")
    assert open_(root).info.fingerprint != before
    (moved / "classes.txt").write_text("a\nb\nc\n")
    assert open_(moved).info.fingerprint != before


def test_without_names_classes_are_the_labels_of_the_training_masks(root, open_):
    for split in ("train", "eval"):
        metadata = open_(root, split).info.metadata
        assert metadata["class_names"] == ("0", "1", "2")
        assert metadata["largest_label"] == 2
    save(root / "annotations/val/0.png", labels(36, 36, classes=9))
    with pytest.raises(DataSetError, match=r"annotations/val/0\.png of images/val/0\.jpg"):
        open_(root, "eval")


def test_masks_with_a_label_more_than_names(root, open_):
    (root / "classes.txt").write_text("road\nwall\n")  # label 0 is none of them
    for split in ("train", "eval"):
        metadata = open_(root, split).info.metadata
        assert metadata["seen_label"] == 2
    with pytest.raises(ConfigError, match="set reduce_zero_label=True"):
        label_lookup(metadata, False)
    assert label_lookup(metadata, True)[[0, 1, 2]].tolist() == [255, 0, 1]


def test_other_names_of_folders(tmp_path, open_):
    write(tmp_path / "a", masks="masks/{}", splits=("training", "validation"))
    assert open_(tmp_path / "a", "eval").name_of(1) == "images/validation/1.jpg"
    write(tmp_path / "b", images="images/{}/city", masks="annotations/{}/city")
    assert open_(tmp_path / "b").name_of(1) == "images/train/city/1.jpg"


def test_a_random_split(root, open_, tmp_path):
    for folder in ("images", "annotations"):
        shutil.rmtree(root / folder / "val")
    settings = {"split": "random", "val_fraction": 0.3}
    parts = [open_(root, split, **settings) for split in ("train", "eval")]
    names = [{part.name_of(i) for i in range(len(part))} for part in parts]
    assert [len(some) for some in names] == [4, 2]
    assert names[0] | names[1] == {f"images/train/{i}.jpg" for i in range(6)}
    assert len({part.info.fingerprint for part in parts}) == 2
    flat = tmp_path / "flat"
    for folder in ("images", "annotations"):
        shutil.copytree(root / folder / "train", flat / folder)
    held_out = open_(flat, "eval", **settings)
    assert {f"images/train/{held_out.name_of(i)[7:]}" for i in range(2)} == names[1]
    with pytest.raises(DataSetError, match=r"(?s)no folder train or training.*split=random"):
        open_(flat)
    with pytest.raises(DataSetError, match=r"val_fraction=0.0 must be between 0 and 1"):
        open_(flat, split="random", val_fraction=0.0)


def test_random_positions():
    train, held_out = random_positions(1000, 0.1, 3)
    assert len(held_out) == 100
    assert sorted(train + held_out) == list(range(1000))
    assert random_positions(1000, 0.1, 3) == (train, held_out)
    assert random_positions(1000, 0.1, 4)[1] != held_out
    assert [len(part) for part in random_positions(2, 0.9, 0)] == [1, 1]
    with pytest.raises(DataSetError, match="1 image cannot be divided"):
        random_positions(1, 0.5, 0)


def test_a_validation_split_is_not_drawn_again(root, open_):
    with pytest.raises(DataSetError, match=r"val is a validation split already"):
        open_(root, split="random")


def test_splits_of_one_kind_are_not_for_the_other(root, make_data):
    data = make_data(source="image_folder", path=str(root), split="random")
    with pytest.raises(DataSetError, match=r"split=random is for config.data.source=mask_folder"):
        open_dataset(data, "train")
    with pytest.raises(DataSetError, match="has a validation split already"):
        open_dataset(make_data(source="mask_folder", path=str(root), split="stratified"), "train")


def test_files_without_the_other_are_reported(root, open_, caplog):
    (root / "annotations/train/0.png").unlink()
    (root / "images/train/3.jpg").unlink()
    dataset = open_(root)
    assert [dataset.name_of(i)[-5] for i in range(len(dataset))] == ["1", "2", "4", "5"]
    assert "images/train: 1 files have no mask and are left out: 0.jpg" in caplog.text
    assert "annotations/train: 1 files have no image and are left out: 3" in caplog.text
    for i in (1, 2, 4):
        (root / f"annotations/train/{i}.png").unlink()
    with pytest.raises(DataSetError, match=r"4 of 5 images .* have no mask .*: 0.jpg, 1.jpg"):
        open_(root)


def test_two_images_of_one_mask(root, open_):
    save(root / "images/train/0.png", photo(40, 30))
    with pytest.raises(DataSetError, match=r"has 0.jpg and 0.png, which would have the same mask"):
        open_(root)


FAULTS = {
    "size": (labels(30, 40), r"the image has 40 x 30 pixels, its mask 30 x 40"),
    "label": (labels(40, 30) + np.uint8(40), r"the mask has the label 40, 41, 42, but there are 3"),
    "colours": (photo(40, 30), r"convert each colour to its index in the palette"),
    "16 bits": (labels(40, 30).astype(np.uint16) + 300, r"the mask has the label 302"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faulty_masks_are_found_at_opening(root, open_, fault):
    (root / "classes.txt").write_text("a\nb\nc\n")
    mask, message = FAULTS[fault]
    save(root / "annotations/train/4.png", mask)
    with pytest.raises(DataSetError, match="1 of 6 masks that were looked at cannot be used") as e:
        open_(root)
    e.match(r"annotations/train/4\.png of images/train/4\.jpg: .*" + message)


def test_colours_are_found_without_names_too(root, open_):
    save(root / "annotations/train/4.png", photo(40, 30))
    with pytest.raises(DataSetError, match=r"4\.png: .*convert each colour"):
        open_(root)


def test_masks_with_a_palette_and_16_bits_are_indices(root, open_):
    plain = open_(root)
    paletted = Image.fromarray(labels(*SIZES[0]), mode="P")
    paletted.putpalette([9, 8, 7] * 256)
    save(root / "annotations/train/0.png", paletted)
    save(root / "annotations/train/1.png", labels(*SIZES[1], 1).astype(np.uint16))
    assert open_(root).info.metadata == plain.info.metadata


def test_bad_examples_are_counted_and_named(root, open_, make_data, caplog):
    (root / "classes.txt").write_text("a\nb\nc\n")
    save(root / "annotations/train/2.png", np.full(SIZES[2][::-1], 255, np.uint8))
    (root / "annotations/train/5.png").write_bytes(b"\x89PNG\r\n")
    dataset = open_(root)  # files that the loader counts are no error
    task = SegmentationConfig(resize_scale=(64, 16), eval_stride=10)
    lookup = label_lookup(dataset.info.metadata, False)
    data = make_data(image_size=16)
    preprocess = SegmentationPreprocess(data, task, lookup, train=True)
    bad = BadImages(dataset, preprocess, limit=2)
    with train_batches(dataset, preprocess, batch_size=6, seed=0) as batches:
        batch = next(batches)
        assert batch["mask"].shape == (6, 16, 16)
        assert sorted(batch["bad"].tolist()) == [-1, -1, -1, -1, 2, 5]
        bad.update(batch["bad"])
    assert "images/train/2.jpg, left out: all pixels of the mask are ignored" in caplog.text
    evaluation = SegmentationPreprocess(data, task, lookup, train=False)
    with eval_batches(dataset, evaluation, batch_size=2) as batches:
        found = list(batches)
    indices = np.concatenate([b["index"] for b in found])
    assert sorted(indices[indices >= 0].tolist()) == [0, 1, 2, 3, 4, 5]
    assert sum(float(b["weight"].sum()) for b in found) == 4
    assert sorted(i for b in found for i in b["bad"].tolist() if i >= 0) == [2, 5]
    for b in found:
        assert (b["original"][b["weight"] > 0] > 0).all()


def test_sizes_of_damaged_files(root, open_):
    (root / "images/train/1.jpg").write_bytes(b"no image")
    (root / "images/train/3.jpg").unlink()
    os.mkfifo(root / "images/train/3.jpg")
    sizes = open_(root).sizes()
    assert sizes.tolist() == [list(s) if i not in (1, 3) else [1, 1] for i, s in enumerate(SIZES)]


def test_layouts_are_explained(tmp_path, open_, make_data):
    with pytest.raises(DataSetError, match=r"no folder images or no folder annotations or masks"):
        open_(tmp_path)
    with pytest.raises(DataSetError, match="is not a folder"):
        open_(tmp_path / "absent")
    with pytest.raises(DataSetError, match=r"config.data.path is not set"):
        open_dataset(make_data(source="mask_folder", path=None), "train")


def test_class_tables():
    table = parse_table(["wall #787878", "chest of drawers", "b#1"], "classes.txt")
    assert table.class_names == ("wall", "chest of drawers", "b#1")
    assert table.palette == ((0x78,) * 3, (128, 0, 0), (0, 128, 0))
    assert len(set(colours(256))) == 256
    for lines, message in ((["a", " "], "line 2 is ' '"), (["a", "a #000000"], "'a' occurs twice")):
        with pytest.raises(DataSetError, match=message):
            parse_table(lines, "classes.txt")
