"""Files and names that others made: links, pipes, metadata of other systems, any bytes."""

import os

import pytest

from tests.data.photographs import encoded, photo
from vig_jax.data.formats.image_folder import find_image_files, is_image

IMAGE = encoded(photo(9, 9))


@pytest.fixture
def cats(tmp_path):
    folder = tmp_path / "photos" / "train" / "cat"
    folder.mkdir(parents=True)
    (folder / "0.jpg").write_bytes(IMAGE)
    return folder


def _names(opened, cats):
    source = opened("image_folder", cats.parents[1])
    assert source.info.fingerprint
    return {source.name_of(i): i for i in range(len(source))}, source


def test_what_is_no_regular_file_is_a_bad_image(opened, cats):
    os.mkfifo(cats / "pipe.jpg")
    (cats / "zero.png").symlink_to("/dev/zero")
    (cats / "gone.png").symlink_to("nowhere.png")
    (cats / "self.png").symlink_to("self.png")
    with (cats / "huge.png").open("wb") as file:
        file.truncate(2**30)
    (cats / "link.jpg").symlink_to("0.jpg")
    names, source = _names(opened, cats)
    assert source[names.pop("train/cat/0.jpg")] == source[names.pop("train/cat/link.jpg")]
    reasons = {}
    for name, index in names.items():
        with pytest.raises(OSError, match=r".") as caught:
            source[index]
        reasons[name.rpartition("/")[2]] = str(caught.value)
    assert sorted(reasons) == ["gone.png", "huge.png", "pipe.jpg", "self.png", "zero.png"]
    for name in ("pipe.jpg", "zero.png"):
        assert reasons[name].startswith("not a regular file")
    assert reasons["huge.png"].startswith("1073741824 bytes are more than")


def test_links_to_folders_are_followed_but_not_in_circles(opened, cats, caplog):
    elsewhere = cats.parents[2] / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "1.jpg").write_bytes(IMAGE)
    (cats / "more").symlink_to(elsewhere)
    (elsewhere / "back").symlink_to(cats)
    (cats / "up").symlink_to("..")
    assert list(_names(opened, cats)[0]) == ["train/cat/0.jpg", "train/cat/more/1.jpg"]
    assert caplog.text.count("leads back to itself: not followed") == 2


def test_metadata_and_formats_that_cannot_be_read(opened, cats, caplog):
    for name in ("._0.jpg", ".ipynb_checkpoints/0.jpg", "__MACOSX/0.jpg", "png", "notes.txt"):
        (cats / name).parent.mkdir(exist_ok=True)
        (cats / name).write_bytes(IMAGE)
    (cats.parent / "__MACOSX" / "cat").mkdir(parents=True)
    for name in ("a.jfif", "b.HEIC", "c.avif", "d.avif"):
        (cats / name).write_bytes(IMAGE)
    names, source = _names(opened, cats)
    assert (list(names), source.class_names) == (["train/cat/0.jpg"], ("cat",))
    assert "4 files are ignored for their extension (2 .avif, 1 .heic, 1 .jfif)" in caplog.text
    assert find_image_files(cats.parent) == ["cat/0.jpg"]
    assert not is_image("png")
    assert is_image("a.png")


def test_names_are_printable(opened, cats):
    (cats / "0.jpg").rename(cats / os.fsdecode(b"caf\xe9\x1b[2J.jpg"))
    names, source = _names(opened, cats)
    assert list(names) == [r"train/cat/caf\xe9\x1b[2J.jpg"]
    assert source[0]["image"] == IMAGE
