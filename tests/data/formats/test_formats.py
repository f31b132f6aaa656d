"""One data set in every format: the same images, labels and batches; and what is said of damage."""

import dataclasses
import itertools
import json
import pickle
import sys
import tarfile

import msgpack
import numpy as np
import pytest
from array_record.python import array_record_module

from tests.data.loading import train_batches
from tests.data.photographs import encoded, photo
from vig_jax.data import open_dataset
from vig_jax.data.convert import Options, convert, find_kind, open_splits
from vig_jax.data.formats.shards import class_names_beside
from vig_jax.data.formats.tar import INDEX_SUFFIX
from vig_jax.errors import DataSetError, UnreadableRecordError

SHARDED = ("array_record", "parquet", "tar")
SUFFIX = {"array_record": "arrayrecord", "parquet": "parquet", "tar": "tar"}


@pytest.fixture
def written(folder, tmp_path):
    """Writes the folder in another format, in order, in two shards; gives the path."""

    def write(kind, **changes):
        destination = tmp_path / kind
        options = Options(**({"to": kind, "shards": 2, "shuffle": False} | changes))
        convert(open_splits(str(folder), "image_folder"), destination, options)
        return destination

    return write


@pytest.fixture
def opened(make_data):
    def opened_(kind, path, part="train", **changes):
        return open_dataset(make_data(source=kind, path=str(path), **changes), part)

    return opened_


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


def _tar(path, members):
    with tarfile.open(path, "w") as archive:
        for name, contents in members.items():
            file = path.parent / "member"
            file.write_bytes(contents)
            archive.add(file, name)
    return path


def test_tar_of_class_folders(tmp_path, opened):
    image = encoded(photo(9, 9))
    members = {f"./{name}/{i}.jpg": image for name in ("dog", "cat") for i in range(2)}
    _tar(tmp_path / "train.tar", members | {"./cat/notes.txt": b"", "./cat/._0.jpg": b"x"})
    _tar(tmp_path / "val.tar", {"dog/7.jpg": image})
    source, held_out = (opened("tar", tmp_path, split) for split in ("train", "eval"))
    assert source.class_names == held_out.class_names == ("cat", "dog")
    assert source.labels().tolist() == [1, 1, 0, 0]
    assert held_out[0] == {"image": image, "label": 1}
    assert held_out.name_of(0) == "val.tar/dog/7.jpg"
    _tar(tmp_path / "val.tar", {"yak/7.jpg": image})
    with pytest.raises(DataSetError, match="not among the 2 classes: yak"):
        opened("tar", tmp_path, "eval")


def test_tars_by_pattern(tmp_path, opened):
    image = encoded(photo(9, 9))
    for name in ("set-train-000", "set-train-001", "set-validation-000"):
        _tar(tmp_path / f"{name}.tar", {"a.jpg": image, "a.cls": b"0"})
    (tmp_path / "classes.txt").write_text("cat\n")
    pattern = str(tmp_path / "set-{split}-*.tar")
    for path in (tmp_path, pattern):
        assert [len(opened("tar", path, split)) for split in ("train", "eval")] == [2, 1]
    with pytest.raises(DataSetError, match=r"config\.data\.split=stratified"):
        opened("tar", tmp_path / "set-train-*.tar")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b""}, "unknown layout: a.jpg has no class"),
        ({"a.jpg": b"", "a.cls": b"0", "b.jpg": b""}, "b has no .cls"),
        ({"a.jpg": b"", "a.png": b"", "a.cls": b"0"}, "a has two images"),
        ({"a.jpg": b"", "a.cls": b"cat"}, r"a.cls is not one number"),
        ({"a.txt": b""}, "has no images"),
        ({"a.jpg": b"", "a.cls": b"2"}, "1 labels of .* out of range.* label 2"),
        ({"a.jpg": b"", "a.cls": b"1"}, "1 classes of .* have no images: cat"),
    ],
)
def test_tar_of_another_layout(tmp_path, opened, members, message):
    _tar(tmp_path / "train.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataSetError, match=message):
        opened("tar", tmp_path)


def test_tar_index_is_stored_and_remade_for_another_tar(tmp_path, opened, caplog):
    caplog.set_level("INFO")
    images = [encoded(photo(9, 9, i)) for i in range(2)]
    tar = _tar(tmp_path / "train.tar", {"cat/0.jpg": images[0]})
    index = tar.with_name(tar.name + INDEX_SUFFIX)
    source = opened("tar", tmp_path)
    stored = index.read_bytes()
    assert opened("tar", tmp_path).info.fingerprint == source.info.fingerprint
    assert index.read_bytes() == stored
    assert not caplog.records
    _tar(tar, {"cat/1.jpg": images[1], "cat/0.jpg": images[0]})
    with pytest.raises(DataSetError, match="has changed since its index was read"):
        source[0]
    later = opened("tar", tmp_path)
    assert "another version of the tar" in caplog.text
    assert [later[i]["image"] for i in range(2)] == images[::-1]
    assert later.info.fingerprint != source.info.fingerprint
    index.write_bytes(b"damaged")
    assert opened("tar", tmp_path).info.fingerprint == later.info.fingerprint


def test_tar_index_goes_to_the_cache_where_it_must(tmp_path, opened, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tar = _tar(tmp_path / "train.tar", {"cat/0.jpg": encoded(photo(9, 9))})
    tar.with_name(tar.name + INDEX_SUFFIX).mkdir()  # cannot be written to
    opened("tar", tmp_path)
    (stored,) = (tmp_path / "cache" / "vig_jax").iterdir()
    assert stored.name.endswith(f"-train.tar{INDEX_SUFFIX}")
    inode = stored.stat().st_ino
    opened("tar", tmp_path)
    assert stored.stat().st_ino == inode


def test_compressed_tar_is_refused(tmp_path, opened):
    with tarfile.open(tmp_path / "train.tar", "w:gz"):
        pass
    with pytest.raises(DataSetError, match="A compressed tar must be unpacked"):
        opened("tar", tmp_path)


def test_parquet_as_hugging_face_lays_it_out(tmp_path, opened, written):
    path = written("parquet")
    (path / "info.json").unlink()  # names are in the metadata
    (path / "data").mkdir()
    for file in path.glob("*.parquet"):
        file.rename(path / "data" / f"{file.stem}-9a1f4cbb3ab07e71.parquet")
    source = opened("parquet", path)
    assert source.class_names == ("cat", "dog", "yak")
    assert source.name_of(0) == "train/cat/000.jpg"
    assert len(source) == 32


def test_parquet_of_another_layout(tmp_path, opened):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "classes.txt").write_text("cat\n")
    table = pa.table({"img": [b""], "label": [0]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataSetError, match=r"unknown layout, with columns img: binary"):
        opened("parquet", tmp_path)
    table = pa.table({"image": [{"bytes": b"", "path": "a"}], "label": [-1]})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(DataSetError, match=r"out of range: example 0 has label -1"):
        opened("parquet", tmp_path)


def test_parquet_without_pyarrow_names_the_command(tmp_path, opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataSetError, match="pip install pyarrow"):
        opened("parquet", tmp_path)


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
        law = {"split": "stratified", "val_fraction": 0.2}
        folder = opened("image_folder", undivided, split, **law)
        source = opened(kind, tmp_path / "out", split, **law)
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
