import os

from vig_jax.text import did_you_mean, preview_names, printable, printable_lines


def test_did_you_mean():
    known = ["img_size", "depth"]
    assert did_you_mean("imgsize", known) == "did you mean 'img_size'?"
    assert did_you_mean("imgsize", known, prefix="model.") == "did you mean 'model.img_size'?"
    assert did_you_mean("q", known) == "known: img_size, depth"
    assert did_you_mean("q", []) == "known: none"


def test_preview_names():
    assert preview_names([1, 2]) == "1, 2"
    assert preview_names("abcdef") == "a, b, c, d, e, ..."
    assert preview_names("abcdef", limit=6) == "a, b, c, d, e, f"


def test_printable():
    assert printable("Katze 猫 नमस्\u200dते") == "Katze 猫 नमस्\u200dते"
    assert printable("a\x1b[2Jb\n\u202ec") == r"a\x1b[2Jb\n\u202ec"
    assert printable(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    assert preview_names(["\x07"]) == r"\x07"


def test_printable_lines():
    assert printable_lines("cat\n\x9b31m\udcff\r\n") == "cat\n\\x9b31m\\xff\\r\n"
