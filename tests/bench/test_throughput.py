"""The figure of throughput against the image size."""

import pytest

from vig_jax.bench.throughput import draw


@pytest.mark.parametrize(
    ("batches", "title", "labels"),
    [
        ((64, 16), "a title; the number at a point is its batch size", {"64", "16"}),
        ((64, 64), "a title, batches of 64", set()),
    ],
)
def test_batch_sizes_are_shown(batches, title, labels, monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        "vig_jax.bench.throughput.save_figure", lambda figure, path: drawn.append(figure)
    )
    rows = [
        {"image_size": size, "batch_size": batch, "img_per_s": 1.0, "ms": 2.0, "program_bytes": 3}
        for size, batch in zip((224, 448), batches, strict=True)
    ]
    draw({"vig_t": rows}, "a title", tmp_path / "sizes.png")
    assert drawn[0].get_suptitle() == title
    for axes in drawn[0].axes:
        assert {text.get_text() for text in axes.texts} == labels
