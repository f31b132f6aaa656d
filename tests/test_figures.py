"""Text of any content in figures."""

import logging

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.figure import Figure
from PIL import Image

from vig_jax import figures
from vig_jax.figures import drawable, font_files, save_figure


@pytest.fixture
def fonts(monkeypatch):
    """Returns a function that pretends which letters the installed fonts have."""

    def pretend(letters):
        monkeypatch.setattr(font_manager, "findfont", lambda _: "default")
        monkeypatch.setattr(font_manager, "findSystemFonts", lambda: list(letters))
        monkeypatch.setattr(figures, "_code_points", lambda file: set(map(ord, letters[file])))
        font_files.cache_clear()

    yield pretend
    font_files.cache_clear()


def test_installed_fonts_are_used_and_missing_letters_reported_once(fonts, caplog):
    caplog.set_level(logging.WARNING)
    fonts({"default": "ab", "han": "a\u732b", "more": "\u732b\u72ac"})
    assert font_files("ab") == []
    assert font_files("a\u732b") == ["han"]
    assert font_files("\u732b\u72ac") == ["more"]
    assert not caplog.records
    for _ in range(2):
        assert font_files("a\u9ce5") == []
    assert ["\u9ce5" in record.getMessage() for record in caplog.records] == [True]


def test_control_characters_and_long_names():
    assert drawable("a\x1b[31m\u202eb", 20) == r"a\x1b[31m\u202eb"
    assert drawable("a" * 30, 10) == "a" * 9 + "…"


def test_dollars_are_no_mathematics(tmp_path):
    pixels = []
    for name in ("$x^2$", "$\\nonsense{$"):
        figure = Figure(figsize=(2, 1))
        figure.suptitle(name)
        save_figure(figure, tmp_path / "sub" / "x.png")
        pixels.append(np.asarray(Image.open(tmp_path / "sub" / "x.png")))
    assert (pixels[0] != pixels[1]).any()
