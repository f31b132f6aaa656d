import dataclasses
import functools
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data.loading import eval_batches, train_batches
from tests.data.photographs import encoded, photo
from vig_jax.data import BadImages, open_dataset
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.data.preprocess.decode import decode
from vig_jax.errors import TooManyBadImagesError, UndecodableImageError


@pytest.fixture
def preprocess(make_data):
    return ClassificationPreprocess(make_data(), train=False)


@pytest.fixture
def source(make_data, folder):
    source = open_dataset(make_data(source="image_folder", path=str(folder)), "train")
    for index in (2, 3, 5):
        (folder / source.name_of(index)).write_bytes(b"")
    (folder / source.name_of(6)).write_bytes(encoded(photo(9, 9))[:150])
    return source


def test_bad_images_are_logged_once(source, preprocess, tmp_path, caplog):
    log = tmp_path / "run" / "bad_images.jsonl"
    account = BadImages(source, preprocess, 100, log)
    account.update(np.array([-1, -1]))
    assert len(account) == 0
    assert not log.exists()
    account.update(np.array([2, -1, 6, 2]))
    account.update(np.array([6, 3]))
    assert len(account) == 3
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["path"] for line in lines] == [source.name_of(i) for i in (2, 6, 3)]
    assert [line["index"] for line in lines] == [2, 6, 3]
    reasons = [line["reason"] for line in lines]
    assert reasons[0] == reasons[2] == "the file is empty"
    assert "Truncated" in reasons[1]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert source.name_of(6) in caplog.text


def test_the_message_shows_the_first_bytes_of_what_is_no_image():
    with pytest.raises(UndecodableImageError) as caught:
        decode(FILES["no image"][1])
    assert str(caught.value) == (
        "not a JPEG, PNG, BMP, WEBP, GIF, TIFF or PPM file: it starts with b'<html>404 No'"
    )


def test_a_later_run_logs_only_new_ones(source, preprocess, tmp_path, caplog):
    log = tmp_path / "bad_images.jsonl"
    BadImages(source, preprocess, 100, log).update(np.array([2]))
    with log.open("a") as file:
        file.write('{"index": 9, "pa')  # the writer was killed
        file.write("\n")
    caplog.clear()
    later = BadImages(source, preprocess, 100, log)
    later.update(np.array([2, 3]))
    assert len(later) == 2
    assert [source.name_of(3) in record.getMessage() for record in caplog.records] == [True]
    assert len(log.read_text().splitlines()) == 3


def test_too_many_bad_images_stop_the_run(source, preprocess, tmp_path):
    account = BadImages(source, preprocess, 2, tmp_path / "bad_images.jsonl")
    account.update(np.array([2, 3]))
    with pytest.raises(
        TooManyBadImagesError, match=r"3 images .*max_bad_images=2 .*bad_images\.jsonl"
    ) as caught:
        account.update(np.array([2, 5]))
    assert source.name_of(5) in str(caught.value)


def test_none_may_be_allowed(source, preprocess):
    account = BadImages(source, preprocess, 0)
    account.update(np.array([-1]))
    with pytest.raises(TooManyBadImagesError):
        account.update(np.array([2]))


SIDE = 60
GOOD = photo(SIDE, SIDE)  # what is decoded must come close to it


def _rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees: ignored, as upstream ignores it
    return encoded(GOOD, quality=95, exif=exif)


def _animated(kind):
    frames = [Image.fromarray(GOOD), Image.new("RGB", (SIDE, SIDE), "lime")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def _bomb():
    """A small file that says it is 20,000 x 20,000 pixels."""
    png = bytearray(encoded(GOOD, "PNG"))
    png[16:24] = struct.pack(">II", 20_000, 20_000)
    png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
    return bytes(png)


def _sixteen_bits():
    return encoded(Image.fromarray(GOOD[..., 0].astype(np.uint16) << 8), "PNG")


GRAY = np.repeat(GOOD[..., :1], 3, axis=2)
PALETTE = Image.fromarray(GOOD).quantize(256)

# File name, contents, what they show (None: undecodable).
FILES = {
    "plain": ("a.jpg", encoded(GOOD, quality=95), GOOD),
    "CMYK": ("a.jpg", encoded(Image.fromarray(GOOD).convert("CMYK"), quality=95), GOOD),
    "grayscale": ("a.jpg", encoded(Image.fromarray(GOOD[..., 0]), quality=95), GRAY),
    "16 bits": ("a.png", _sixteen_bits(), GRAY),
    "palette": ("a.png", encoded(PALETTE, "PNG"), GOOD),
    "palette, alpha": ("a.png", encoded(PALETTE, "PNG", transparency=bytes(256)), GOOD),
    "EXIF": ("a.jpg", _rotated(), GOOD),
    "animated GIF": ("a.gif", _animated("GIF"), GOOD),
    "animated WebP": ("a.webp", _animated("WEBP"), GOOD),
    "animated PNG": ("a.png", _animated("PNG"), GOOD),
    "misnamed": ("a.jpg", encoded(GOOD, "PNG"), GOOD),
    "zero bytes": ("a.jpg", b"", None),
    "truncated": ("a.jpg", encoded(GOOD)[:-300], None),
    "no image": ("a.png", b"<html>404 Not Found</html>", None),
    "bomb": ("a.png", _bomb(), None),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.filterwarnings("error")
def test_every_kind_of_file_as_the_documentation_says(kind, make_data, tmp_path):
    """In training and in evaluation: decoded, or left out under its name."""
    name, contents, expected = FILES[kind]
    for split, others in (("train", 3), ("val", 1)):
        (tmp_path / split / "cat").mkdir(parents=True)
        (tmp_path / split / "cat" / name).write_bytes(contents)
        for i in range(others):
            (tmp_path / split / "cat" / f"z{i}.png").write_bytes(encoded(255 - GOOD, "PNG"))
    data = make_data(
        source="image_folder", path=str(tmp_path), image_size=SIDE, crop="none", hflip=0.0,
        crop_pct=1.0,
    )  # fmt: skip
    for split, folder, batches in (
        ("train", "train", functools.partial(train_batches, batch_size=4, seed=0)),
        ("eval", "val", functools.partial(eval_batches, batch_size=2)),
    ):
        source = open_dataset(data, split)
        with batches(source, data) as opened:
            batch = next(opened)
        account = BadImages(source, ClassificationPreprocess(data, train=False), 0)
        if expected is None:
            with pytest.raises(TooManyBadImagesError, match=f"the latest {folder}/cat/{name}"):
                account.update(batch["bad"])
            continue
        account.update(batch["bad"])
        (row,) = np.flatnonzero(batch["index"] == 0)
        difference = batch["image"][row].astype(int) - expected
        assert np.abs(difference).mean() < 8


def _damaged(image):
    """Changes bytes in the middle, so that libjpeg warns and Pillow does not."""
    contents = bytearray(image)
    place = len(contents) // 2
    contents[place : place + 3] = b"\xff\xd7\x55"  # a restart marker where none is due
    return bytes(contents)


@pytest.mark.parametrize("resize", ["auto", "pillow"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_damaged_jpeg_is_used_and_named_or_left_out(resize, mode, make_data, tmp_path, caplog):
    pytest.importorskip("simplejpeg")
    for split in ("train", "val"):
        (tmp_path / split / "cat").mkdir(parents=True)
        for i in range(3):
            image = encoded(Image.fromarray(photo(60, 60, i)).convert(mode))
            contents = _damaged(image) if i == 1 else image
            (tmp_path / split / "cat" / f"{i}.jpg").write_bytes(contents)
    data = make_data(source="image_folder", path=str(tmp_path), resize=resize)
    log = tmp_path / "bad_images.jsonl"
    for split, batches in (
        ("train", functools.partial(train_batches, batch_size=3, seed=0)),
        ("eval", functools.partial(eval_batches, batch_size=3)),
    ):
        source = open_dataset(data, split)
        with batches(source, data) as opened:
            batch = next(opened)
        assert sorted(batch["bad"]) == [-3, -1, -1]
        assert sorted(batch["index"]) == [0, 1, 2]
        assert batch.get("weight", np.ones(3)).all()
        account = BadImages(source, ClassificationPreprocess(data, train=False), 0, log)
        account.update(batch["bad"])
        assert (len(account), account.damaged) == (0, {1})
        assert f"{source.name_of(1)} is used: damaged, decodable: Corrupt JPEG" in caplog.text
        entry = json.loads(log.read_text().splitlines()[-1])
        assert entry["used"]
        leave_out = dataclasses.replace(data, damaged_jpegs="leave_out")
        with batches(source, leave_out) as opened:
            batch = next(opened)
        assert sorted(batch["bad"]) == [-1, -1, 1]
