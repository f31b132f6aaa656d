"""Finding and drawing image files."""

import numpy as np
from PIL import Image

from vig_jax.inference.files import Prediction, draw, find_images


def test_leftovers_of_other_programs_are_left_out(tmp_path):
    root = tmp_path / ".hidden"  # the folder that is named may have any name
    names = ("a.png", "b/c.JPG", "._a.png", "__MACOSX/a.png", "b/.ipynb_checkpoints/c.jpg", "d.txt")
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    assert find_images([root]) == [root / "a.png", root / "b" / "c.JPG"]
    assert find_images([root / "._a.png"]) == [root / "._a.png"]


def test_names_with_dollars_and_control_characters(tmp_path):
    name = "$a$ and $b\x1b[31m$"
    file = tmp_path / "photo.png"
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(file)
    prediction = Prediction(file, ((name, 0.5),))
    assert draw([prediction], tmp_path / "figure.png", [name]) == 1
    assert "\x1b" not in str(prediction)
    assert r"$b\x1b[31m$ 50.0%" in str(prediction)
    assert prediction.to_json()["top"][0]["class"] == name
