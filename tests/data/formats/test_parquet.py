import sys

import pytest

from vig_jax.errors import DataSetError


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
