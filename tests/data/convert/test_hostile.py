"""Conversions of names that are not UTF-8 and of damaged images, and of two at once."""

import json
import multiprocessing
import os
import time

import numpy as np
import pytest

from vig_jax.data.convert import Options, convert, open_splits, shard, verify
from vig_jax.data.inspection import inspect
from vig_jax.data.loader import watch
from vig_jax.errors import ConversionError, FolderInUseError
from vig_jax.folder_lock import folder_lock

KINDS = ("array_record", "image_folder", "parquet", "tar")


def test_names_that_are_not_utf8_are_converted_and_verified(folder, tmp_path):
    for split in ("train", "val"):
        (folder / split / "cat").rename(folder / split / os.fsdecode(b"caf\xe9"))
    file = next((folder / "train" / "dog").iterdir())
    file.rename(file.with_name(os.fsdecode(b"\xff\x1b.jpg")))
    original = open_splits(str(folder), "image_folder")
    for kind in KINDS:
        convert(original, tmp_path / kind, Options(to=kind, shuffle=False))
        assert verify(tmp_path / kind) == 39
        source = open_splits(str(tmp_path / kind), kind)["train"]
        assert source.class_names == original["train"].class_names
        if kind != "image_folder":
            assert [source[i] for i in range(5)] == [original["train"][i] for i in range(5)]


def test_netpbm_files_are_read_in_every_layout(tmp_path, caplog):
    root, wide = tmp_path / "photos", np.arange(64, dtype=">u2").reshape(8, 8) * 1000
    files = {
        "a.pgm": b"P5 8 8 65535 " + wide.tobytes(),
        "b.PBM": b"P4 8 8 " + bytes(range(8)),
        "c.pnm": b"P6 8 8 255 " + bytes(192),
        "d.pfm": b"Pf 8 8 -1 " + bytes(256),
    }
    for split in ("train", "val"):
        (root / split / "cat").mkdir(parents=True)
        for name, contents in files.items():
            (root / split / "cat" / name).write_bytes(contents)
    source = open_splits(str(root), "image_folder")
    assert [source["train"].name_of(i)[-5:] for i in range(len(source["train"]))] == list(files)[:3]
    for kind in KINDS:
        convert(source, tmp_path / kind, Options(to=kind, shuffle=False))
        again = open_splits(str(tmp_path / kind), kind)["train"]
        assert [again[i]["image"] for i in range(3)] == list(files.values())[:3]
    written = sorted(path.name for path in (tmp_path / "image_folder" / "train").rglob("0*"))
    assert written == ["00000000.pgm", "00000001.pbm", "00000002.ppm"]
    assert "1 files are ignored for their extension (1 .pfm)" in caplog.text


def test_two_conversions_to_one_folder(folder, tmp_path):
    out = tmp_path / "out"
    (out / ".conversion").mkdir(parents=True)
    sources = open_splits(str(folder), "image_folder")
    with folder_lock(out / ".conversion", "DST"):
        for resume in (False, True):
            with pytest.raises(FolderInUseError, match="in use by process"):
                convert(sources, out, Options(), resume=resume)
    convert(sources, out, Options(), resume=True)  # the lock of a process that has ended
    assert not (out / ".conversion").exists()


def hangs(*_):
    time.sleep(60)


def test_workers_that_hang_at_their_start_end_the_conversion(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shard, "_start_worker", hangs)
    monkeypatch.setattr(shard, "_FILE_TIMES", 0.001)
    monkeypatch.setattr(watch, "_START_SECONDS", 1.0)
    sources = open_splits(str(folder), "image_folder")
    silent = r"workers for 1 s \(2 starting\).*--resume continues"
    with pytest.raises(ConversionError, match=silent):
        convert(sources, tmp_path / "out", Options(shards=2), workers=2)
    assert not multiprocessing.active_children()


def test_damaged_jpegs_are_listed_or_left_out(folder, tmp_path, caplog):
    pytest.importorskip("simplejpeg")
    file = folder / "train" / "cat" / "003.jpg"
    contents = bytearray(file.read_bytes())
    place = contents.rfind(b"\xff\xda") + 60  # among the pixels: a marker where none is due
    contents[place : place + 3] = b"\xff\xd7\x55"
    file.write_bytes(contents)
    sources = open_splits(str(folder), "image_folder")
    about = inspect(sources["train"])
    assert [bad["path"] for bad in about["damaged"]] == ["train/cat/003.jpg"]
    assert not about["undecodable"]
    info = convert(sources, tmp_path / "used", Options())
    assert (info["splits"]["train"]["images"], info["splits"]["train"]["damaged"]) == (32, 1)
    (line,) = (tmp_path / "used" / "damaged.jsonl").read_text().splitlines()
    assert json.loads(line)["path"] == "train/cat/003.jpg"
    assert json.loads(line)["reason"].startswith("damaged, decodable: Corrupt JPEG")
    assert "1 images are damaged, but decode" in caplog.text
    left_out = Options(leave_out_damaged=True)
    info = convert(sources, tmp_path / "left_out", left_out, max_errors=1)
    assert (info["splits"]["train"]["images"], info["splits"]["train"]["left_out"]) == (31, 1)
