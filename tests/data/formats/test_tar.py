import io
import tarfile

import numpy as np
import pytest

from tests.data.photographs import encoded, photo
from vig_jax.errors import DataSetError, UnreadableRecordError


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
        ({"a.jpg": b"", "a.cls": b"4294967296"}, "out of range: a.cls has label 4294967296"),
        ({"a.jpg": b"", "a.cls": b"0" * 99}, "a.cls is not one number"),
        ({"../a.jpg": b""}, "a.jpg leads out of the tar"),
        ({"a.jpg": b"", "a.cls": b"2"}, "1 labels of .* out of range.* label 2"),
        ({"a.jpg": b"", "a.cls": b"1"}, "1 classes of .* have no images: cat"),
    ],
)
def test_tar_of_another_layout(tmp_path, opened, members, message):
    _tar(tmp_path / "train.tar", members)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataSetError, match=message):
        opened("tar", tmp_path)


def _member(name, contents=b"", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(contents)
    return info, contents


def _write(path, *members):
    with tarfile.open(path, "w") as archive:
        for info, contents in members:
            archive.addfile(info, io.BytesIO(contents) if contents else None)
    return path


@pytest.mark.parametrize("above", ["", "./", "train/", "data/images/"])
def test_classes_are_the_outermost_folders_as_in_a_folder_of_images(tmp_path, opened, above):
    image = encoded(photo(9, 9))
    names = ("cat/day/0.png", "cat/night/deep/1.png", "dog/day/2.png", "dog/3.png")
    _tar(tmp_path / "train.tar", {above + name: image for name in names})
    if "data" in above:
        with pytest.raises(DataSetError, match=r"in the folder data.*images.*classes\.txt"):
            opened("tar", tmp_path)
        (tmp_path / "classes.txt").write_text("cat\ndog\n")
    source = opened("tar", tmp_path)
    assert source.class_names == ("cat", "dog")
    assert source.labels().tolist() == [0, 0, 1, 1]


def test_one_class_of_several_folders_is_not_taken_for_several(tmp_path, opened):
    image = encoded(photo(9, 9))
    _tar(tmp_path / "train.tar", {"cat/day/0.png": image, "cat/night/1.png": image})
    with pytest.raises(DataSetError, match=r"in the folder cat, which has the folders day, night"):
        opened("tar", tmp_path)
    _tar(tmp_path / "train.tar", {"cat/day/0.png": image, "dog/day/1.png": image})
    _tar(tmp_path / "val.tar", {"dog/day/0.png": image, "dog/night/1.png": image})
    assert opened("tar", tmp_path, "eval").labels().tolist() == [1, 1]


def test_links_in_a_tar_are_followed(tmp_path, opened, caplog):
    first, second = (encoded(photo(9, 9, i)) for i in range(2))
    _write(
        tmp_path / "train.tar",
        _member("cat/0.png", first),
        _member("dog/0.png", kind=tarfile.LNKTYPE, link="cat/0.png"),
        _member("emu/0.png", kind=tarfile.SYMTYPE, link="../cat/later.png"),
        _member("cat/later.png", second),
        _member("fox", kind=tarfile.SYMTYPE, link="cat"),
        _member("cat/circle", kind=tarfile.SYMTYPE, link="../cat"),
        _member("cat/gone.png", kind=tarfile.SYMTYPE, link="/elsewhere.png"),
        _member("gnu", kind=tarfile.SYMTYPE, link="/elsewhere"),
        _member("emu/self.png", kind=tarfile.SYMTYPE, link="self.png"),
    )
    source = opened("tar", tmp_path)
    found = {source.name_of(i).partition("/")[2]: i for i in range(len(source))}
    assert source.class_names == ("cat", "dog", "emu", "fox")
    images = {
        "cat/0.png": first, "dog/0.png": first, "emu/0.png": second, "cat/later.png": second,
        "fox/0.png": first, "fox/later.png": second,
    }  # fmt: skip
    for name, image in images.items():
        assert source[found.pop(name)]["image"] == image
    for index in found.values():
        with pytest.raises(UnreadableRecordError, match="not in the tar"):
            source[index]
    assert sorted(found) == ["cat/gone.png", "emu/self.png", "fox/gone.png"]
    assert "gnu is a link to /elsewhere, which is not in the tar" in caplog.text


def test_the_last_of_equal_names_counts(tmp_path, opened):
    images = [encoded(photo(9, 9, i)) for i in range(3)]
    members = [_member(f"cat/{i % 2}.png", image) for i, image in enumerate(images)]
    _write(tmp_path / "train.tar", *members)
    source = opened("tar", tmp_path)
    assert [source[i]["image"] for i in range(len(source))] == images[1:]


def test_nothing_beside_a_tar_is_trusted(tmp_path, opened):
    """An index of another program, or of another tar, changes no label; a changed tar is seen."""
    images = [encoded(photo(9, 9, i)) for i in range(2)]
    tar = _tar(tmp_path / "train.tar", {"cat/0.jpg": images[0], "dog/1.jpg": images[1]})
    source = opened("tar", tmp_path)
    forged = {"version": 1, "size": tar.stat().st_size, "mtime": tar.stat().st_mtime_ns}
    with (tmp_path / "train.tar.index.npz").open("wb") as file:
        np.savez(file, **forged, offsets=[0], lengths=[9], labels=[1], names=np.zeros(1, np.uint8))
    assert opened("tar", tmp_path).info.fingerprint == source.info.fingerprint
    assert {file.name for file in tmp_path.glob("*.tar*")} == {"train.tar", "train.tar.index.npz"}
    _tar(tar, {"cat/1.jpg": images[1], "cat/0.jpg": images[0]})
    with pytest.raises(DataSetError, match="has changed since its index was read"):
        source[0]
    later = opened("tar", tmp_path)
    assert [later[i]["image"] for i in range(2)] == images[::-1]
    assert later.info.fingerprint != source.info.fingerprint


@pytest.mark.parametrize("name", ["cat/0.png", "0.cls"])
@pytest.mark.parametrize("size", [b"77777777777\0", b"\x80" + b"\0" * 4 + b"\xff" * 7])
def test_a_header_that_lies_about_a_size_is_named(tmp_path, opened, name, size):
    tar = _write(tmp_path / "train.tar", _member(name, b"0"))
    header = bytearray(tar.read_bytes())
    header[124:136] = size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    tar.write_bytes(header)
    with pytest.raises(DataSetError, match=r"train\.tar is truncated"):
        opened("tar", tmp_path)


def test_compressed_tar_is_refused(tmp_path, opened):
    with tarfile.open(tmp_path / "train.tar", "w:gz"):
        pass
    with pytest.raises(DataSetError, match="A compressed tar must be unpacked"):
        opened("tar", tmp_path)
