import json

import pytest

from vig_jax.files import file_digest, write_atomically, write_json


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_file_is_replaced_or_left_alone(tmp_path, concurrent):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), write_atomically(path, concurrent=concurrent) as draft:
        draft.write_bytes(b"%d" % (1 / 0))
    assert path.read_bytes() == b"old"
    with write_atomically(path, concurrent=concurrent) as draft:
        assert draft.suffix == ".bin"
        draft.write_bytes(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_replaced(tmp_path):
    path = tmp_path / "run"
    (path / "old").mkdir(parents=True)
    with write_atomically(path) as draft:
        (draft / "new").mkdir(parents=True)
    assert [entry.name for entry in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_not_replaced_by_a_file(tmp_path):
    path = tmp_path / "run"
    path.mkdir()
    with pytest.raises(IsADirectoryError), write_atomically(path) as draft:
        draft.write_bytes(b"")
    assert list(tmp_path.iterdir()) == [path]


def test_json_and_digest(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"a": [1]})
    assert json.loads(path.read_text()) == {"a": [1]}
    path.write_bytes(b"abc")
    assert file_digest(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
