import json
import pickle

import numpy as np
import pytest

from tests import golden_det
from tests.data.coco_files import MASK, SIZES, SQUARE, annotation, content
from tests.data.photographs import encoded, photo
from vig_jax.config import DetectionConfig
from vig_jax.data import eval_batches, train_batches
from vig_jax.data.dataset import DetectionDataset
from vig_jax.data.formats import coco_index, json_stream
from vig_jax.data.preprocess.detection import DetectionPreprocess
from vig_jax.errors import DataSetError
from vig_jax.ops import rle

SMALL = DetectionConfig(
    resize_scale=(96, 64), buckets=((64, 96), (96, 64)), max_boxes=3, mask_side=8
)


def test_training_has_usable_boxes_alone(open_coco):
    source = open_coco()
    assert isinstance(source, DetectionDataset)
    assert [source.name_of(i) for i in range(len(source))] == [
        f"train2017/{number:04}.jpg" for number in (9, 1, 4)
    ]
    assert source.sizes().tolist() == [[60, 40], [60, 40], [40, 60]]
    example = source[1]
    assert (example["size"], example["image_id"]) == ((60, 40), 1)
    assert example["labels"].tolist() == [1, 0]  # by rising id of the category
    assert example["boxes"].tolist() == [[5, 10, 30, 20.5]] * 2
    assert example["boxes"].dtype == np.float32
    (polygon,), mask = example["segmentations"]
    np.testing.assert_array_equal(polygon, np.reshape(SQUARE, (-1, 2)))
    np.testing.assert_array_equal(rle.decode(mask), MASK)
    assert source.info.metadata["instance_names"] == ("crab", "seal")
    assert source.info.metadata["category_ids"] == [1, 7]
    assert source.info.metadata["has_masks"]
    with pytest.raises(IndexError):
        source[3]


def test_evaluation_has_all_images_and_annotations(open_coco):
    source = open_coco("eval")
    assert len(source) == 5
    truth = source.ground_truth(1)
    assert (truth.image_id, truth.size) == (1, (60, 40))
    assert truth.ids.tolist() == [11, 12, 13, 22, 23, 24, 25, 26, 27, 28]
    assert truth.crowd.tolist() == [False, False, True] + [False] * 7
    assert truth.labels.tolist() == [1, 0] + [1] * 8
    assert truth.boxes[4].tolist() == [3, 4, 3.5, 13]
    assert truth.areas[:4].tolist() == [262.5, 262.5, 262.5, 0]
    assert [rle.area(mask) > 0 for mask in truth.masks] == [True] * 6 + [False] * 4
    assert truth.masks[0] == rle.from_coco([SQUARE], 40, 60)._replace(counts=truth.masks[0].counts)
    np.testing.assert_array_equal(truth.masks[0].counts, rle.from_coco([SQUARE], 40, 60).counts)
    assert rle.area(truth.masks[2]) == 400


def test_faults_are_counted_and_named(open_coco):
    found = open_coco().faults(most_boxes=1)
    texts = coco_index.FAULTS
    numbers = {texts[i]: 19 + i for i in range(1, 7)}
    expected = {text: [f"image 1, annotation {number}"] for text, number in numbers.items()}
    expected[texts[7]] = [f"image 1, annotation {number}" for number in (26, 27, 28)]
    expected[texts[8]] = ["image 1, annotation 11"]
    expected |= {
        "is a crowd": ["image 1, annotation 13", "image 8, annotation 16"],
        "image without a usable box": ["image 8"],
        "image shorter than 32 pixels": ["image 3"],
        "image with more than 1 usable boxes": ["image 1"],
        "annotation of an image that is not listed": ["1 of the file"],
    }
    assert found == expected
    assert open_coco().counts() == ([1, 3], [1, 3])


def test_a_file_without_masks_is_no_fault(open_coco, coco_root):
    plain = [annotation(1, segmentation=[]), annotation(2, 9, segmentation=None)]
    (coco_root / "annotations" / "instances_train2017.json").write_text(json.dumps(content(plain)))
    source = open_coco()
    assert not source.info.metadata["has_masks"]
    assert len(source) == 2
    assert "segmentations" not in source[0]
    assert source.ground_truth(0).masks is None
    assert coco_index.FAULTS[6] not in source.faults(100)


def test_the_index_is_made_once_and_shared(open_coco, monkeypatch):
    first = open_coco()
    pickled = pickle.dumps(first)
    assert len(pickled) < 1500
    made = []
    monkeypatch.setattr(coco_index, "build", lambda file: made.append(file))
    again = open_coco()
    assert not made
    for source in (again, pickle.loads(pickled)):
        assert source.info == first.info
        for name, array in first[1].items():
            if name != "segmentations":
                np.testing.assert_array_equal(source[1][name], array)
    assert first.info.fingerprint != open_coco("eval").info.fingerprint


@pytest.mark.parametrize("damage", ["truncated", "unwritable"])
def test_a_cache_that_cannot_be_used(open_coco, damage, tmp_path, caplog, monkeypatch):
    first = open_coco()
    info, image = first.info, first[1]["image"]
    del first
    if damage == "truncated":
        (file,) = (tmp_path / "cache" / "vig_jax" / "coco").iterdir()
        file.write_bytes(file.read_bytes()[:200])
    else:
        (tmp_path / "file").touch()
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    source = pickle.loads(pickle.dumps(open_coco()))
    assert ("is damaged" if damage == "truncated" else "cannot be written") in caplog.text
    assert source.info == info
    assert source[1]["image"] == image


def test_numbers_with_many_digits_are_kept(open_coco, coco_root):
    golden = golden_det.load("masks")
    height, width = golden.facts["image"]
    entries = [annotation(i, segmentation=p) for i, p in enumerate(golden.facts["polygons"])]
    entries += [
        annotation(100 + i, segmentation=stored) for i, stored in enumerate(golden.facts["rle"])
    ]
    values = content(entries)
    values["images"] = [{"id": 1, "width": width, "height": height, "file_name": "a.jpg"}]
    (coco_root / "annotations" / "instances_val2017.json").write_text(json.dumps(values))
    (coco_root / "val2017" / "a.jpg").touch()
    truth = open_coco("eval").ground_truth(0)
    expected = golden_det.unpack(golden.arrays["bitmaps"], width)
    for mask, bitmap in zip(truth.masks, [*expected, *expected], strict=True):
        np.testing.assert_array_equal(rle.decode(mask), bitmap)


def test_batches(open_coco, make_data, coco_root):
    (coco_root / "train2017" / "0001.jpg").write_bytes(encoded(photo(61, 40)))
    data = make_data(resize="pillow")
    source = open_coco()
    preprocess = DetectionPreprocess(data, SMALL, train=True)
    with train_batches(source, preprocess, batch_size=1, seed=0) as batches:
        found = [next(batches) for _ in range(9)]
    for batch in found:
        assert batch["bad"] in (-1, 1)  # the size is not that of the annotations
        shape = {9: (64, 96, 3), 4: (96, 64, 3)}[batch["image_id"].item()]
        assert batch["image"].shape[1:] == shape
        assert batch["valid"].sum() == 1
    assert any(batch["bad"] == 1 for batch in found)
    held_out = DetectionPreprocess(data, SMALL, train=False)
    with eval_batches(open_coco("eval"), held_out, batch_size=2) as batches:
        ids = {int(i) for batch in batches for i in batch["image_id"][batch["weight"] > 0]}
    assert ids == set(SIZES)


def test_one_file_is_divided_here(open_coco, coco_root):
    file = coco_root / "val2017" / "all.json"
    file.write_text(json.dumps(content()))
    settings = {"path": str(file), "split": "random", "val_fraction": 0.4}
    train, held_out = (open_coco(split, **settings) for split in ("train", "eval"))
    names = [{source.name_of(i) for i in range(len(source))} for source in (train, held_out)]
    assert not names[0] & names[1]
    assert len(held_out) == 2
    assert train.info.fingerprint != open_coco(**settings | {"val_fraction": 0.2}).info.fingerprint
    assert held_out[0]["image"]
    with pytest.raises(DataSetError, match=r"without splits: set config\.data\.split=random"):
        open_coco(path=str(file))


def test_other_names_of_folders(open_coco, coco_root):
    (coco_root / "images").mkdir()
    (coco_root / "train2017").rename(coco_root / "images" / "train")
    file = coco_root / "annotations" / "instances_train2017.json"
    file.rename(file.with_name("instances_train.json"))
    assert len(open_coco()) == 3
    (coco_root / "images" / "train").rename(coco_root / "elsewhere")
    with pytest.raises(DataSetError, match="is there, but no folder"):
        open_coco()
    file.with_name("instances_train.json").unlink()
    with pytest.raises(DataSetError, match=r"no file instances_train2017\.json or instances_train"):
        open_coco()


def test_files_that_are_missing(open_coco, coco_root):
    for image in (coco_root / "train2017").iterdir():
        image.unlink()
    with pytest.raises(DataSetError, match=r"none of 3 images of .* is in"):
        open_coco()


def test_faults_of_a_file_without_a_usable_image_are_named(open_coco, coco_root):
    values = content([annotation(20, category_id=12), annotation(21, 9, area=0)])
    file = coco_root / "annotations" / "instances_train2017.json"
    file.write_text(json.dumps(values))
    with pytest.raises(DataSetError, match="no images that can be used for training") as error:
        open_coco()
    assert "(unknown category: 1; no area: 1; image without a usable box: 5; " in str(error.value)


def test_names_of_files_stay_in_the_folder(open_coco, coco_root):
    values = content()
    for image in values["images"]:
        image["file_name"] = "../val2017/" + image["file_name"]
    (coco_root / "annotations" / "instances_train2017.json").write_text(json.dumps(values))
    with pytest.raises(OSError, match="outside of the folder"):
        open_coco()[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not complete JSON"),
        ('{"images": [{"id": 1}', "has an element of `images`"),
        ('{"images": [1', "has an element of `images`"),
        ('{"annotations": [{"id": ', "not complete JSON"),
        ("[1, 2]", "not complete JSON"),
        ('{"images": [], "annotations": []}', "has 0 images and 0 categories"),
        ('{"images": [{"id": 1, "width": 0, "height": 5, "file_name": "a"}], '
         '"categories": [{"id": 1}]}', "without width and height"),
        ('{"annotations": [[1]]}', "has an element of `annotations`"),
    ],
)  # fmt: skip
def test_malformed_files(open_coco, coco_root, text, message):
    (coco_root / "annotations" / "instances_train2017.json").write_text(text)
    with pytest.raises(DataSetError, match=message):
        open_coco()


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_elements_are_read_in_parts_of_any_length(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_stream, "_CHUNK", chunk)
    file = tmp_path / "a.json"
    values = {
        "a": [{"x": [1, {"y": "]"}]}, 12345],
        "n": 12345,
        "b": {"a": [1]},
        "c": [],
        "d": [2.5],
    }
    for indent in (None, 2):
        file.write_text(json.dumps(values, indent=indent))
        found = list(json_stream.elements(file, ("a", "b", "c", "d")))
        assert found == [("a", {"x": [1, {"y": "]"}]}), ("a", 12345), ("d", 2.5)]
