import csv
import os

import numpy as np
import pytest
from PIL import Image

from vig_jax.metrics.confusion import Confusion

COUNTS = np.array([[8, 2, 0], [5, 5, 0], [0, 1, 0]])


def confusion(counts=COUNTS, names=("cat", "dog", "yak")):
    return Confusion.from_counts(counts, names, "vig_t, weights after 5 updates")


def test_is_read_as_it_was_written(tmp_path):
    written = Confusion.from_counts(COUNTS.astype(np.float32), ["cat", "猫"], "vig_t")
    written.save(tmp_path)
    read = Confusion.load(tmp_path)
    np.testing.assert_array_equal(read.counts, COUNTS)
    assert read.counts.dtype == np.int64
    assert read.class_names == ("cat", "猫", "class 2")  # the model has one more output
    assert read.description == "vig_t"
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.npz"]


def test_damaged_and_absent_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        Confusion.load(tmp_path)
    confusion().save(tmp_path)
    file = tmp_path / "confusion.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"confusion\.npz is damaged"):
        Confusion.load(tmp_path)


def test_most_frequent_mistakes_come_first(tmp_path):
    rows = confusion().top()
    assert [(r["true"], r["predicted"], r["count"], r["share"]) for r in rows] == [
        ("dog", "cat", 5, 0.5),
        ("cat", "dog", 2, 0.2),
        ("yak", "dog", 1, 1.0),
    ]
    assert confusion().top(limit=1) == rows[:1]
    confusion().write_top(tmp_path / "top.csv")
    with (tmp_path / "top.csv").open() as file:
        assert [row["count"] for row in csv.DictReader(file)] == ["5", "2", "1"]


def test_a_name_that_is_not_utf8(tmp_path):
    confusion(names=(os.fsdecode(b"caf\xe9"), "$a$b", "猫")).write_top(tmp_path / "top.csv")
    with (tmp_path / "top.csv").open(encoding="utf-8") as file:
        assert next(csv.DictReader(file))["predicted"] == r"caf\udce9"


def test_nothing_is_confused(tmp_path):
    assert confusion(np.diag([3, 4, 0])).top() == []
    confusion(np.zeros((3, 3), int)).draw(tmp_path / "none.png")  # nothing was evaluated, either


@pytest.mark.parametrize("count", [2, 30, 300])
def test_figure(tmp_path, count):
    """Dark where images are: on the diagonal, for few classes and for many."""
    names = ["$x_", "猫", *(f"a rather long name of a class {i}" for i in range(count - 2))]
    path = tmp_path / "made" / "confusion.png"
    confusion(np.eye(count, dtype=int) * 5, names).draw(path)
    with Image.open(path) as drawn:
        pixels = np.asarray(drawn.convert("RGB")).astype(int)
    assert pixels.shape[0] > 500
    red, _, blue = np.moveaxis(pixels, -1, 0)
    dark_blue = (blue > 90) & (red < 60) & (blue - red > 50)
    area = dark_blue[:, : pixels.shape[1] * 3 // 4].sum()
    inside = pixels.shape[0] ** 2 / 2
    assert 0.2 / count < area / inside < 2 / count
