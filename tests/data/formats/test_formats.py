"""One data set in every format: the same images, labels and batches; messages about damage."""

import itertools
import json
import pickle

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module

from tests.data.loading import eval_batches, train_batches
from tests.data.photographs import encoded, photo
from vig_jax.data import open_dataset
from vig_jax.data.convert import find_kind
from vig_jax.data.datasets.relabel import match_classes
from vig_jax.data.formats.shards import class_names_beside
from vig_jax.data.inspection import inspect
from vig_jax.errors import DataSetError, UnreadableRecordError

SHARDED = ("array_record", "parquet", "tar")
SUFFIX = {"array_record": "arrayrecord", "parquet": "parquet", "tar": "tar"}


@pytest.mark.parametrize("kind", SHARDED)
def test_every_format_holds_the_same(kind, written, opened, folder):
    path = written(kind)
    assert find_kind(str(path)) == kind
    for split in ("train", "eval"):
        original, source = opened("image_folder", folder, split), opened(kind, path, split)
        assert source.class_names == original.class_names
        assert len(source) == len(original)
        for index in range(len(source)):
            assert source[index] == original[index]
        np.testing.assert_array_equal(source.labels(), original.labels())
        assert source.name_of(3)
        assert opened(kind, path, split).info.fingerprint == source.info.fingerprint
        again = pickle.loads(pickle.dumps(source))
        assert again[5] == source[5]
        with pytest.raises(IndexError):
            source[len(source)]
    assert (
        opened(kind, path, "train").info.fingerprint != opened(kind, path, "eval").info.fingerprint
    )


@pytest.mark.parametrize(("kind", "workers"), [("array_record", 0), ("parquet", 1), ("tar", 0)])
def test_every_format_gives_the_same_batches(kind, workers, written, make_data, folder):
    """Parquet with a worker: it opens its files again in each process."""

    def batches(kind, path, workers):
        data = make_data(source=kind, path=str(path), image_size=16, workers=workers)
        dataset = open_dataset(data, "train")
        with train_batches(dataset, data, batch_size=8, seed=3, start_step=2) as some:
            return list(itertools.islice(some, 3))

    expected = batches("image_folder", folder, 0)
    for batch, other in zip(batches(kind, written(kind), workers), expected, strict=True):
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name], other[name])


@pytest.mark.parametrize("kind", SHARDED)
def test_a_fingerprint_follows_the_content(kind, written, opened, folder, tmp_path):
    path = written(kind)
    before = opened(kind, path).info.fingerprint
    path.rename(tmp_path / "moved")
    assert opened(kind, tmp_path / "moved").info.fingerprint == before
    file = folder / "train" / "cat" / "001.PNG"
    image = file.read_bytes()
    file.write_bytes(encoded(photo(30, 30, 99), "PNG"))
    assert opened(kind, written(kind)).info.fingerprint != before
    file.write_bytes(image)


@pytest.mark.parametrize("kind", SHARDED)
def test_missing_truncated_and_doubled_shards(kind, written, opened):
    path = written(kind)
    shard = path / f"train-00001-of-00002.{SUFFIX[kind]}"
    contents = shard.read_bytes()
    shard.write_bytes(contents[:-700])
    with pytest.raises(DataSetError, match=r"truncated: .* bytes, info\.json says"):
        opened(kind, path)
    shard.write_bytes(b"")
    with pytest.raises(DataSetError, match="is empty"):
        opened(kind, path)
    info = path / "info.json"
    (path / "classes.txt").write_text("cat\ndog\nyak\n")
    info.rename(path / "kept.json")
    shard.write_bytes(contents[: len(contents) // 2])  # now only the format shows it
    with pytest.raises(DataSetError, match="truncated"):
        opened(kind, path)
    shard.unlink()
    with pytest.raises(DataSetError, match=r"1 of the 2 shards .* are missing.* number 1\."):
        opened(kind, path)
    shard.write_bytes(contents)
    assert len(opened(kind, path)) == 32
    (path / f"train-00000-of-00001.{SUFFIX[kind]}").write_bytes(contents)
    with pytest.raises(DataSetError, match="more than one numbering"):
        opened(kind, path)
    (path / f"train-00000-of-00001.{SUFFIX[kind]}").unlink()
    (path / f"train-00001-of-00002 (copy).{SUFFIX[kind]}").write_bytes(contents)
    with pytest.raises(DataSetError, match=r"is a copy of .*: remove one of them"):
        opened(kind, path)


@pytest.mark.parametrize("kind", SHARDED)
def test_nothing_there_is_explained(kind, tmp_path, opened, make_data):
    with pytest.raises(DataSetError, match="does not exist"):
        opened(kind, tmp_path / "absent")
    (tmp_path / "other.txt").touch()
    with pytest.raises(DataSetError, match=f"no train-.*{SUFFIX[kind]}.* it has other.txt"):
        opened(kind, tmp_path)
    with pytest.raises(DataSetError, match=r"config\.data\.path is not set"):
        open_dataset(make_data(source=kind), "train")


def test_class_names_beside_shards(written, opened, tmp_path):
    path = written("array_record")
    (path / "info.json").unlink()
    with pytest.raises(DataSetError, match=r"nothing names the classes: write .*classes\.txt"):
        opened("array_record", path)
    (path / "classes.txt").write_text("Katze\nHund\n\n")
    assert class_names_beside(path) == ("Katze", "Hund")
    source = opened("array_record", path)
    with pytest.raises(DataSetError, match="has label 2, but there are 2 class names"):
        source.labels()
    (path / "classes.txt").write_text("a\na\n")
    with pytest.raises(DataSetError, match="'a' occurs twice"):
        opened("array_record", path)
    (path / "info.json").write_text('{"of": "another program"}')
    (path / "classes.txt").write_text("a\nb\nc\n")
    assert opened("array_record", path).class_names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda info: info["splits"]["train"]["shards"][0].pop("bytes"), "'train' lacks images"),
        (lambda info: info["splits"]["train"]["class_counts"].pop(), "one per class"),
        (lambda info: info["class_names"].append(3), "lacks class_names"),
        (lambda info: info["splits"].update(val=[]), "'val' lacks images"),
    ],
)
def test_an_info_json_of_other_types_is_refused(written, opened, change, message):
    path = written("tar")
    info = json.loads((path / "info.json").read_text())
    change(info)
    (path / "info.json").write_text(json.dumps(info))
    with pytest.raises(DataSetError, match=message):
        opened("tar", path)


def _records(path, *records):
    writer = array_record_module.ArrayRecordWriter(
        str(path / "train-00000-of-00001.arrayrecord"), "group_size:1,uncompressed"
    )
    for record in records:
        writer.write(record)
    writer.close()
    (path / "classes.txt").write_text("cat\ndog\n")


def test_records_of_another_layout(tmp_path, opened):
    _records(tmp_path, b"\x0a\x99 an Example of TFDS")
    with pytest.raises(DataSetError, match=r"unknown layout.*tf\.train\.Example"):
        opened("array_record", tmp_path)


def test_a_damaged_record_is_a_bad_image(tmp_path, opened):
    records = [
        msgpack.packb({"image": encoded(photo(30, 30, i)), "label": i % 2}) for i in range(4)
    ]
    _records(tmp_path, *records)
    file = tmp_path / "train-00000-of-00001.arrayrecord"
    contents = bytearray(file.read_bytes())
    place = contents.find(records[2]) + 100
    contents[place] ^= 255
    file.write_bytes(contents)
    source = opened("array_record", tmp_path)
    with pytest.raises(UnreadableRecordError, match=r"record 2 .* damaged"):
        source[2]
    assert "record 2" in source.name_of(2)
    assert source[3]["label"] == 1
    assert source.labels().tolist() == [0, 1, -1, 1]
    about = inspect(source)
    assert (about["inspected"], about["classes"]) == (4, {"cat": 1, "dog": 2})
    assert [bad["index"] for bad in about["undecodable"]] == [2]
    halves = [opened("array_record", tmp_path / "*.arrayrecord", part, split="stratified",
                     val_fraction=0.5) for part in ("train", "eval")]  # fmt: skip
    assert [half.labels().tolist() for half in halves] == [[0, -1, 1], [1]]
    assert match_classes(source, ["dog", "cat"], num_classes=2).labels().tolist() == [1, 0, -1, 0]


def test_the_first_record_may_be_damaged_and_labels_be_wrong(tmp_path, opened):
    image = encoded(photo(30, 30))
    labels = (b"0", 1, 5, 0)
    _records(tmp_path, *(msgpack.packb({"image": image, "label": label}) for label in labels))
    about = inspect(opened("array_record", tmp_path))
    assert about["classes"] == {"cat": 1, "dog": 1}
    assert [bad["index"] for bad in about["undecodable"]] == [0, 2]
    assert "has label 5" in about["undecodable"][1]["reason"]


@pytest.mark.parametrize(("h", "w", "size"), [(0, 0, 0), (-1, 2, 12), (2, 2, 11), (2.0, 2, 12)])
def test_a_raw_record_without_pixels_is_a_bad_image(tmp_path, opened, make_data, h, w, size):
    record = {"image": bytes(size), "label": 0, "raw": True, "h": h, "w": w}
    good = {"image": bytes(12), "label": 1, "raw": True, "h": 2, "w": 2}
    _records(tmp_path, msgpack.packb(record), msgpack.packb(good))
    source = opened("array_record", tmp_path)
    with eval_batches(source, make_data(), batch_size=2) as batches:
        assert next(batches)["bad"].tolist() == [0, -1]
