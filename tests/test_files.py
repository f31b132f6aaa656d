"""Drafts that nobody else can reach, and JSON."""

import json

import pytest

from vig_jax.files import to_json, write_atomically, write_text


@pytest.mark.parametrize("concurrent", [False, True])
def test_a_planted_link_is_not_followed(tmp_path, concurrent):
    victim = tmp_path / "victim"
    victim.write_text("kept")
    target = tmp_path / "result.json"
    with write_atomically(target, concurrent=concurrent) as draft:
        private = draft.parent
        draft.write_text("first")
    assert private.parent == tmp_path
    for planted in (private, target):
        planted.unlink(missing_ok=True)
        planted.symlink_to(victim)
    with write_atomically(target, concurrent=concurrent) as draft:
        assert draft.parent.stat().st_mode & 0o777 == 0o700
        draft.write_text("second")
    assert (target.read_text(), victim.read_text()) == ("second", "kept")
    assert not target.is_symlink()
    assert {file.name for file in tmp_path.iterdir()} == {"victim", "result.json"}


def test_a_draft_is_removed_after_an_error_and_after_a_kill(tmp_path):
    target = tmp_path / "result.json"
    write_text(target, "first")
    with pytest.raises(RuntimeError), write_atomically(target) as draft:  # noqa: PT012
        draft.write_text("half")
        raise RuntimeError
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    draft.parent.mkdir()
    draft.write_text("half")  # of a process that was killed
    write_text(target, "second")
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]
    assert target.read_text() == "second"


def test_a_folder_is_replaced(tmp_path):
    target = tmp_path / "folder"
    for number in range(2):
        with write_atomically(target) as draft:
            draft.mkdir()
            (draft / str(number)).touch()
    assert [file.name for file in target.iterdir()] == ["1"]
    assert [file.name for file in tmp_path.iterdir()] == ["folder"]


def test_json_has_no_nan():
    value = {"a": [float("nan"), (1.5, float("-inf"))], "b": {"c": 2, "d": None, "e": "NaN"}}
    expected = {"a": [None, [1.5, None]], "b": {"c": 2, "d": None, "e": "NaN"}}
    assert json.loads(to_json(value), parse_constant=pytest.fail) == expected
