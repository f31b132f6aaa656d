import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import encoded, photo
from vig_jax.data import open_dataset
from vig_jax.data.convert import (
    Options,
    conversion,
    convert,
    find_kind,
    open_splits,
    verification,
    verify,
)
from vig_jax.data.convert.progress import Progress
from vig_jax.data.formats import array_record
from vig_jax.data.preprocess.decode import decode, read_header
from vig_jax.errors import ConversionError, DataSetError

KINDS = ("array_record", "image_folder", "parquet", "tar")


def contents(sources):
    """Every image with its class's name, by split."""
    return {
        split: sorted(
            (source.class_names[example["label"]], example["image"])
            for example in (source[i] for i in range(len(source)))
        )
        for split, source in sources.items()
    }


@pytest.fixture
def sources(folder):
    return open_splits(str(folder), "image_folder")


def test_round_trip_through_all_formats(sources, tmp_path):
    before = sources
    for number, kind in enumerate(("tar", "array_record", "parquet", "image_folder", "tar")):
        destination = tmp_path / f"{number} {kind}"
        info = convert(before, destination, Options(to=kind, shards=3, seed=number))
        assert info["splits"]["train"]["images"] == 32
        assert info["splits"]["train"]["class_counts"] == [13, 8, 11]
        assert verify(destination) == 39
        assert not (destination / ".conversion").exists()
        assert find_kind(str(destination)) == kind
        before = open_splits(str(destination), kind)
    assert contents(before) == contents(sources)


def test_the_order_is_drawn_by_the_seed(sources, tmp_path):
    def labels(name, **options):
        convert(sources, tmp_path / name, Options(**options))
        return open_splits(str(tmp_path / name), "array_record")["train"].labels().tolist()

    assert labels("a", seed=1) == labels("b", seed=1, shards=3)
    assert labels("c", seed=2) != labels("d", seed=1, shards=2)
    assert labels("e", shuffle=False) == sources["train"].labels().tolist()


def test_workers_write_the_same(sources, tmp_path):
    options = Options(to="image_folder", shards=2)
    here, elsewhere = (
        convert(sources, tmp_path / str(workers), options, workers=workers) for workers in (0, 2)
    )
    assert here == elsewhere
    assert here["splits"]["val"]["images"] == 7


def test_shards_by_size(sources, tmp_path):
    total = sum(len(sources["train"][i]["image"]) for i in range(32))
    info = convert(sources, tmp_path / "out", Options(to="tar", shard_size=total // 4))
    assert 3 <= len(info["splits"]["train"]["shards"]) <= 6
    assert len(info["splits"]["val"]["shards"]) in (1, 2)
    names = [shard["name"] for shard in info["splits"]["train"]["shards"]]
    assert names[1] == f"train-00001-of-{len(names):05d}.tar"


def test_resize(tmp_path, make_data):
    for name, size in (("wide", (90, 40)), ("tall", (33, 70)), ("small", (20, 18))):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "1.png").write_bytes(encoded(photo(*size), "PNG"))
    sources = open_splits(str(tmp_path / "in"), "image_folder")
    options = Options(resize_short=30, quality=90, subsampling="4:4:4", shuffle=False)
    convert(sources, tmp_path / "out", options)
    source = open_splits(str(tmp_path / "out"), "array_record")["train"]
    small, tall, wide = (source[i]["image"] for i in range(3))
    assert [decode(image).size for image in (small, tall, wide)] == [(20, 18), (30, 64), (68, 30)]
    assert small == (tmp_path / "in" / "small" / "1.png").read_bytes()  # as it was
    original = Image.fromarray(photo(90, 40)).resize((68, 30), Image.Resampling.BICUBIC)
    difference = np.asarray(decode(wide), int) - np.asarray(original, int)
    assert np.abs(difference).mean() < 4


def test_progressive_jpegs_are_reencoded_on_request(tmp_path):
    files = [encoded(photo(50, 40), progressive=progressive) for progressive in (True, False)]
    (tmp_path / "in" / "cat").mkdir(parents=True)
    for number, file in enumerate(files):
        (tmp_path / "in" / "cat" / f"{number}.jpg").write_bytes(file)
    sources = open_splits(str(tmp_path / "in"), "image_folder")
    for reencode in (False, True):
        options = Options(reencode_progressive=reencode, shuffle=False)
        convert(sources, tmp_path / f"{reencode}", options)
        source = open_splits(str(tmp_path / f"{reencode}"), "array_record")["train"]
        slow, fast = (source[i]["image"] for i in range(2))
        assert (slow == files[0], fast) == (not reencode, files[1])
        assert read_header(slow).progressive == (not reencode)
        difference = np.asarray(decode(slow), int) - np.asarray(decode(files[0]), int)
        assert np.abs(difference).mean() < 2


def test_raw_records_hold_the_pixels(sources, tmp_path):
    out = tmp_path / "out"
    info = convert(sources, out, Options(raw=True, resize_short=30, shuffle=False, shards=2))
    assert verify(out) == 39
    records = open_splits(str(out), "array_record")["train"]
    for index in (0, 5, 31):
        image = decode(sources["train"][index]["image"])
        scale = 30 / min(image.size)
        size = tuple(30 if side == min(image.size) else round(side * scale) for side in image.size)
        expected = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(records[index]["image"], expected)
        assert records[index]["label"] == sources["train"][index]["label"]
    assert info["splits"]["train"]["shards"][0]["bytes"] > 16 * 30 * 30 * 3
    # And back, as PNG: nothing is lost on the way.
    convert({"train": records}, tmp_path / "back", Options(to="tar", shuffle=False))
    back = open_splits(str(tmp_path / "back"), "tar")["train"]
    np.testing.assert_array_equal(np.asarray(decode(back[5]["image"])), records[5]["image"])


def test_raw_records_that_lie_about_their_size_are_unreadable(sources, tmp_path, monkeypatch):
    pack = array_record.pack

    def lying(image, label, key, size, raw):
        return pack(image, label, key, (1, 2), raw)

    monkeypatch.setattr(array_record, "pack", lying)
    convert(sources, tmp_path / "out", Options(raw=True))
    with pytest.raises(DataSetError, match=r"record 0 is raw, but its \d+ bytes are not h x w x 3"):
        open_splits(str(tmp_path / "out"), "array_record")


def test_only_array_record_holds_raw_pixels(sources, tmp_path):
    with pytest.raises(ValueError, match="raw=True must be false except for array_record"):
        convert(sources, tmp_path / "out", Options(to="tar", raw=True))


def test_limit(sources, tmp_path):
    info = convert(sources, tmp_path / "out", Options(limit=5))
    assert [split["images"] for split in info["splits"].values()] == [5, 5]


def test_undecodable_images_are_left_out_and_listed(folder, sources, tmp_path):
    bad = [folder / sources["train"].name_of(i) for i in (3, 20)]
    bad[0].write_bytes(b"")
    bad[1].write_bytes(bad[1].read_bytes()[:200])
    out = tmp_path / "out"
    with pytest.raises(ConversionError, match=r"1 images .*errors\.jsonl.*--max-errors 0"):
        convert(sources, out, Options(shards=4, shuffle=False))
    with pytest.raises(DataSetError, match="started differently: with other settings of shards"):
        convert(sources, out, Options(shards=5, shuffle=False), resume=True, max_errors=2)
    info = convert(sources, out, Options(shards=4, shuffle=False), resume=True, max_errors=2)
    assert (info["splits"]["train"]["images"], info["splits"]["train"]["left_out"]) == (30, 2)
    listed = [json.loads(line) for line in (out / "errors.jsonl").read_text().splitlines()]
    assert [(e["index"], e["path"]) for e in listed] == [
        (i, sources["train"].name_of(i)) for i in (3, 20)
    ]
    assert all(e["reason"] and e["split"] == "train" for e in listed)
    assert verify(out) == 37


def test_without_decoding_only_what_has_no_header_is_left_out(folder, sources, tmp_path):
    file = folder / sources["train"].name_of(20)
    file.write_bytes(file.read_bytes()[:-40])
    convert(sources, tmp_path / "out", Options(decode=False))
    with pytest.raises(DataSetError, match=r"is damaged:\ntrain/"):
        verify(tmp_path / "out")


class Interrupted:
    """A data set that cannot be read once `marker` exists."""

    def __init__(self, dataset, marker):
        self._dataset, self._marker = dataset, marker

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def __len__(self):
        return len(self._dataset)

    def __getitem__(self, index):
        if self._marker.exists():
            raise KeyboardInterrupt
        return self._dataset[index]


@pytest.mark.parametrize("kind", KINDS)
def test_an_interrupted_conversion_is_resumed(kind, sources, tmp_path):
    options, out = Options(to=kind, shards=4), tmp_path / "out"
    whole = convert(sources, tmp_path / "whole", options)
    interrupted = Interrupted(sources["train"], out / ".conversion" / "train-00001.done")
    with pytest.raises(KeyboardInterrupt):
        convert(sources | {"train": interrupted}, out, options)
    shards = [shard["name"] for shard in whole["splits"]["train"]["shards"]]
    before = {name: file.stat().st_mtime_ns for name in shards for file in out.rglob(name)}
    assert list(before) == shards[:2]
    with pytest.raises(DataSetError, match="was interrupted: --resume continues it"):
        convert(sources, out, options)
    assert convert(sources, out, options, resume=True) == whole
    after = {name: file.stat().st_mtime_ns for name in shards for file in out.rglob(name)}
    assert list(after) == shards
    assert after | before == after  # finished shards were not rewritten
    assert not [file for file in out.rglob("*") if ".tmp" in file.name]
    assert verify(out) == 39
    assert convert(sources, out, options, resume=True) == whole
    with pytest.raises(DataSetError, match="not an empty folder"):
        convert(sources, out, options)


@pytest.mark.parametrize("content", ['{"sources": {', "[]", '{"options": 1}', "\ufffd"])
def test_a_damaged_plan_is_one_line(content, sources, tmp_path):
    out = tmp_path / "out"
    interrupted = Interrupted(sources["train"], out / ".conversion" / "train-00000.done")
    with pytest.raises(KeyboardInterrupt):
        convert({"train": interrupted}, out, Options(to="tar", shards=2))
    (out / ".conversion" / "plan.json").write_text(content)
    with pytest.raises(DataSetError, match=rf"plan.json is damaged .* remove {out} and convert"):
        convert({"train": sources["train"]}, out, Options(to="tar", shards=2), resume=True)


def test_verification_has_the_limit_of_the_conversion(sources, tmp_path, monkeypatch):
    limits = set()
    monkeypatch.setattr(verification, "decode", lambda image, limit: limits.add(limit))
    convert(sources, tmp_path / "out", Options(max_image_pixels=10**8))
    assert verify(tmp_path / "out") == 39
    assert limits == {10**8}


def test_a_damaged_plan_of_a_complete_conversion_is_one_line(sources, tmp_path):
    out = tmp_path / "plan.json"  # a name that means something elsewhere
    convert(sources, out, Options(to="tar", shards=2))
    file = out / "info.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"plan": []}))
    message = rf"{file} is damaged \(it holds no plan\); remove {out} and convert again"
    with pytest.raises(DataSetError, match=message):
        convert(sources, out, Options(to="tar", shards=2), resume=True)


@pytest.mark.parametrize("content", ["[]", "{", "null"])
def test_a_shard_with_a_damaged_marker_is_rewritten(content, sources, tmp_path):
    out = tmp_path / "out"
    interrupted = Interrupted(sources["train"], out / ".conversion" / "train-00000.done")
    with pytest.raises(KeyboardInterrupt):
        convert({"train": interrupted}, out, Options(to="tar", shards=2))
    (out / ".conversion" / "train-00000.done").write_text(content)
    convert({"train": sources["train"]}, out, Options(to="tar", shards=2), resume=True)
    assert verify(out) == 32


def test_the_draft_of_a_killed_conversion_is_overwritten(sources, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    draft = out / ".train-00000-of-00001.tar.tmp" / "train-00000-of-00001.tar"
    interrupted = Interrupted(sources["train"], draft)
    with pytest.raises(KeyboardInterrupt):
        convert({"train": interrupted}, out, Options(to="tar", shards=1))
    draft.parent.mkdir()
    draft.write_bytes(b"left by a process that was killed")
    assert convert({"train": sources["train"]}, out, Options(to="tar", shards=1), resume=True)
    assert verify(out) == 32
    assert not draft.exists()


def test_a_conversion_that_did_not_know_an_option_is_resumed(sources, tmp_path):
    out = tmp_path / "out"
    convert(sources, out, Options())
    info = json.loads((out / "info.json").read_text())
    del info["plan"]["options"]["raw"]
    (out / "info.json").write_text(json.dumps(info))
    assert convert(sources, out, Options(), resume=True) == info
    with pytest.raises(DataSetError, match="with other settings of raw"):
        convert(sources, out, Options(raw=True), resume=True)
    (out / "info.json").write_text(json.dumps(info | {"plan": []}))
    with pytest.raises(DataSetError, match=r"info.json is damaged .* remove .*out and convert"):
        convert(sources, out, Options(), resume=True)


def test_a_changed_source_is_not_resumed(folder, sources, tmp_path):
    convert(sources, tmp_path / "out", Options())
    (folder / "train" / "cat" / "new.png").write_bytes(encoded(photo(9, 9), "PNG"))
    with pytest.raises(DataSetError, match="its source was another, or has changed"):
        convert(open_splits(str(folder), "image_folder"), tmp_path / "out", Options(), resume=True)


@pytest.mark.parametrize("kind", KINDS)
def test_verify_finds_every_flipped_bit(kind, sources, tmp_path):
    convert(sources, tmp_path / "out", Options(to=kind))
    assert verify(tmp_path / "out") == 39
    file = max((tmp_path / "out").rglob("*.*"), key=lambda f: f.is_file() and f.stat().st_size)
    before = bytearray(file.read_bytes())
    changed = before.copy()
    changed[len(changed) // 2] ^= 1
    file.write_bytes(changed)
    with pytest.raises(DataSetError, match=f"{file.name} is not what was written"):
        verify(tmp_path / "out")
    file.unlink()
    with pytest.raises(DataSetError, match=f"{file.name} is missing"):
        verify(tmp_path / "out")
    file.write_bytes(before)
    assert verify(tmp_path / "out") == 39


def test_a_folder_keeps_the_numbers_of_its_classes(make_data, tmp_path):
    sources = {split: open_dataset(make_data(), split) for split in ("train", "eval")}
    convert(sources, tmp_path / "out", Options(to="image_folder", limit=60))
    data = make_data(source="image_folder", path=str(tmp_path / "out"))
    folder = open_dataset(data, "eval")
    assert folder.class_names[:2] == ("T-shirt-top", "Trouser")  # not in the order of the alphabet
    for index in (0, 30, 59):
        number = int(folder.name_of(index).rpartition("/")[2].partition(".")[0])
        assert folder[index]["label"] == sources["eval"][number]["label"]
        np.testing.assert_array_equal(
            np.asarray(decode(folder[index]["image"])), sources["eval"][number]["image"]
        )
    (tmp_path / "out" / "val" / "Trouser").rename(tmp_path / "out" / "val" / "Trousers")
    (tmp_path / "out" / "train" / "Trouser").rename(tmp_path / "out" / "train" / "Trousers")
    with pytest.raises(DataSetError, match=r"not those of its info\.json"):
        open_dataset(data, "eval")


def test_a_full_disk_is_noticed_before(sources, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    with pytest.raises(ConversionError, match=r"needs about .* GB in .*--resize-short"):
        convert(sources, tmp_path / "out", Options())


@pytest.mark.parametrize(
    "change",
    [{"to": "x"}, {"shards": 0}, {"quality": 0}, {"resize_short": -1}, {"limit": 0}, {"seed": -1}],
)
def test_options_out_of_range(sources, tmp_path, change):
    with pytest.raises(ValueError, match=f"{next(iter(change))}=.* must be"):
        convert(sources, tmp_path / "out", Options(**change))
    assert not (tmp_path / "out").exists()


def test_progress_in_a_log(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with Progress(tmp_path / "errors.jsonl", 1, 39, log_seconds=0.0) as progress:
        progress.update(16, 1000, [])
        assert "16 of 39 images" in caplog.text
        assert "MB/s, 0 errors" in caplog.text


KILLED = """
import multiprocessing, os, signal, sys, threading, time
import shutil
from pathlib import Path
from vig_jax.data.convert import conversion
from vig_jax.data.dataset import DatasetInfo

folder = Path(sys.argv[1])

class Slow:
    num_classes, class_names = 1, ("a",)

    def __len__(self):
        return 8

    def __getitem__(self, index):
        if multiprocessing.parent_process() is None:
            return {"image": b"asked for its size", "label": 0}
        (folder / f"{os.getpid()}.pid").touch()
        time.sleep(40)

    def name_of(self, index):
        return str(index)

    info = DatasetInfo("slow", "slow", {})

def kill():
    while not (started := list(folder.glob("*.pid"))):
        time.sleep(0.05)
    os.kill(int(started[0].stem), signal.SIGKILL)

if __name__ == "__main__":
    threading.Thread(target=kill, daemon=True).start()
    try:
        conversion.convert(
            {"train": Slow()}, folder / "out", conversion.Options(shards=2), workers=2
        )
    except RuntimeError as error:
        print(error)
"""


def test_a_killed_worker_ends_the_conversion(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(KILLED)
    begun = time.monotonic()
    root = Path(conversion.__file__).parents[3]
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    assert re.search(r"a worker process was killed, with \d+ in hand", ended.stdout)
    assert ended.returncode != -signal.SIGKILL
    assert time.monotonic() - begun < 25  # and does not wait for the other


def test_find_kind(tmp_path):
    with pytest.raises(DataSetError, match="is not a folder"):
        find_kind(str(tmp_path / "absent"))
    assert find_kind(str(tmp_path / "x-{split}-*.tar")) == "tar"
    for name in ("a.tar", "b.parquet"):
        (tmp_path / name).touch()
    with pytest.raises(DataSetError, match="holds parquet and tar: choose one with --from"):
        find_kind(str(tmp_path))
