import json

import numpy as np
import pytest

from tests.data.pictures import encoded, photo
from vig_jax.data import BadImages, TooManyBadImagesError, open_source


@pytest.fixture
def source(make_data, folder):
    source = open_source(make_data(source="image_folder", path=str(folder)), "train")
    for index in (2, 3, 5):
        (folder / source.name_of(index)).write_bytes(b"")
    (folder / source.name_of(6)).write_bytes(encoded(photo(9, 9))[:150])
    return source


def test_bad_images_are_told_once(source, tmp_path, caplog):
    log = tmp_path / "run" / "bad_images.jsonl"
    account = BadImages(source, 100, log)
    account.update(np.array([-1, -1]))
    assert len(account) == 0
    assert not log.exists()
    account.update(np.array([2, -1, 6, 2]))
    account.update(np.array([6, 3]))
    assert len(account) == 3
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["path"] for line in lines] == [source.name_of(i) for i in (2, 6, 3)]
    assert [line["index"] for line in lines] == [2, 6, 3]
    assert all(line["reason"] for line in lines)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 3
    assert source.name_of(6) in caplog.text


def test_a_later_account_tells_only_what_is_new(source, tmp_path, caplog):
    log = tmp_path / "bad_images.jsonl"
    BadImages(source, 100, log).update(np.array([2]))
    with log.open("a") as file:
        file.write('{"index": 9, "pa')  # the writer was killed
        file.write("\n")
    caplog.clear()
    later = BadImages(source, 100, log)
    later.update(np.array([2, 3]))
    assert len(later) == 2
    assert [source.name_of(3) in record.getMessage() for record in caplog.records] == [True]
    assert len(log.read_text().splitlines()) == 3


def test_too_many_bad_images_stop_the_run(source, tmp_path):
    account = BadImages(source, 2, tmp_path / "bad_images.jsonl")
    account.update(np.array([2, 3]))
    with pytest.raises(
        TooManyBadImagesError, match=r"3 images .*max_bad_images=2 .*bad_images\.jsonl"
    ) as caught:
        account.update(np.array([2, 5]))
    assert source.name_of(5) in str(caught.value)


def test_none_may_be_allowed(source):
    account = BadImages(source, 0)
    account.update(np.array([-1]))
    with pytest.raises(TooManyBadImagesError):
        account.update(np.array([2]))
