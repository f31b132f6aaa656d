import json
import os

import numpy as np

from vig_jax.data import open_dataset
from vig_jax.data.convert import open_splits
from vig_jax.data.inspection import contact_sheet, inspect


def test_inspect(folder):
    sources = open_splits(str(folder), "image_folder")
    file = folder / sources["train"].name_of(20)
    file.write_bytes(b"no image")
    about = inspect(sources["train"])
    assert (about["images"], about["inspected"]) == (32, 32)
    assert about["classes"] == {"cat": 13, "dog": 8, "yak": 11}
    assert about["formats"] == {"JPEG RGB": 12, "PNG RGB": 10, "BMP RGB": 9}
    assert about["width"]["min"] == 40
    assert about["height"]["max"] == 40
    (bad,) = about["undecodable"]
    assert (bad["index"], bad["path"]) == (20, sources["train"].name_of(20))
    assert json.loads(json.dumps(about)) == about
    assert inspect(sources["train"], sample=4)["inspected"] == 4


def test_contact_sheet(make_data):
    sheet = np.asarray(contact_sheet(open_dataset(make_data(), "eval")))
    assert sheet.shape[0] > sheet.shape[1] > 1000  # ten of each class, with captions
    assert sheet.std() > 50


def test_contact_sheet_keeps_the_limit(opened, folder):
    source = opened("image_folder", folder)
    assert np.asarray(contact_sheet(source)).std() > np.asarray(contact_sheet(source, 99)).std()


def test_contact_sheet_of_names_in_any_script(opened, folder):
    for old, new in (
        ("cat", b"caf\xe9\x1b$a$"),
        ("dog", "Ελληνικά".encode()),
        ("yak", "猫".encode()),
    ):
        for split in ("train", "val"):
            (folder / split / old).rename(folder / split / os.fsdecode(new))
    sheet = np.asarray(contact_sheet(opened("image_folder", folder)))
    assert sheet.std() > 50
