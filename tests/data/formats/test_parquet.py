import sys

import pytest

from vig_jax.errors import DataSetError, UnreadableRecordError


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


@pytest.mark.parametrize(
    ("label", "kind", "shown"),
    [(2**32, "int64", 2**32), (2**32 + 1, "uint64", 2**32 + 1), (2**63, "uint64", 2**63 - 1),
     (None, "uint8", -1), (-(2**32), "int64", -(2**32))],
)  # fmt: skip
def test_a_label_is_checked_before_it_is_narrowed(tmp_path, opened, label, kind, shown):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    images = [{"bytes": b"", "path": "a"}] * 2
    labels = pa.array([1, label], getattr(pa, kind)())
    pyarrow.parquet.write_table(
        pa.table({"image": images, "label": labels}), tmp_path / "train.parquet"
    )
    with pytest.raises(DataSetError, match=rf"1 labels .* example 1 has label {shown},"):
        opened("parquet", tmp_path)


def test_a_row_with_a_path_only_says_so(tmp_path, opened):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    (tmp_path / "classes.txt").write_text("cat\n", encoding="utf-8-sig")
    image = pa.array([{"bytes": None, "path": "a\x1b.jpg"}], pa.struct(
        [("bytes", pa.binary()), ("path", pa.string())]
    ))  # fmt: skip
    pyarrow.parquet.write_table(
        pa.table({"image": image, "label": [0]}), tmp_path / "train.parquet"
    )
    source = opened("parquet", tmp_path)
    assert source.class_names == ("cat",)
    with pytest.raises(UnreadableRecordError, match=r"holds a path, a\\x1b\.jpg, but no bytes"):
        source[0]


def test_parquet_without_pyarrow_names_the_command(tmp_path, opened, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataSetError, match="pip install pyarrow"):
        opened("parquet", tmp_path)
