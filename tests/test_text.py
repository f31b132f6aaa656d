from vig_jax.text import did_you_mean, preview_names


def test_did_you_mean():
    known = ["img_size", "depth"]
    assert did_you_mean("imgsize", known) == "did you mean 'img_size'?"
    assert did_you_mean("imgsize", known, prefix="model.") == "did you mean 'model.img_size'?"
    assert did_you_mean("q", known) == "known: img_size, depth"


def test_preview_names():
    assert preview_names([1, 2]) == "1, 2"
    assert preview_names("abcdef") == "a, b, c, d, e, ..."
    assert preview_names("abcdef", limit=6) == "a, b, c, d, e, f"
