import tarfile

import pytest

from tests.data.photographs import encoded, photo
from vig_jax.data.formats.tar import INDEX_SUFFIX
from vig_jax.errors import DataSetError


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
