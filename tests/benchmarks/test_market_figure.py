"""The figures of the market, on made-up rows."""

import json
import math

import pytest
from matplotlib.text import Text

from benchmarks import market_figure
from benchmarks.published import OURS, PEERS


def rows(size=224):
    """Returns rows of all models whose speeds fall with the accuracy, many of them close."""
    made = []
    for number, (name, model) in enumerate((OURS | PEERS).items()):
        speed = 1e4 * math.exp((83 - model.weights[0].top1) / 2 + 0.3 * math.sin(7 * number))
        for batch in (256, 1):
            row = {"model": name, "image_size": size, "batch_size": batch, "waited_ms": 2e4 / speed}
            row |= {"asked_batch_size": batch, "img_per_s": speed * (1 if batch > 1 else 0.02)}
            made.append(row | {"memory_bytes": 1e9 + 1e7 * number})
    return made


def test_no_label_covers_a_point_or_another_label(monkeypatch, tmp_path):
    drawn = []
    monkeypatch.setattr(
        "vig_jax.figures.save_figure", lambda figure, path: drawn.append((figure, path))
    )
    file = tmp_path / "rows.json"
    file.write_text(json.dumps({"device": "a toy", "rows": rows()}))
    assert market_figure.main([str(file), "--out", str(tmp_path)]) == 0
    ((figure, path),) = drawn
    assert path == tmp_path / "market_224.png"
    assert len(figure.axes) == 3
    figure.draw_without_rendering()
    renderer = figure.canvas.get_renderer()
    for axes in figure.axes:
        assert {text.get_text() for text in axes.texts} == {
            model.label for model in (OURS | PEERS).values()
        }
        boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]  # without arrows
        for i, one in enumerate(boxes):
            for other in boxes[:i]:
                box = (one.extents.tolist(), other.extents.tolist())
                assert market_figure.overlap(*box) == 0


def test_domination_counts_accuracy_and_speed():
    def row(name, speed, batch=8):
        return {"model": name, "img_per_s": speed, "asked_batch_size": batch, "batch_size": batch}

    lines = market_figure.dominated(
        [
            row("vig_s", 100),  # 81.7 %
            row("deit_small_patch16_224", 200),  # less accurate
            row("deit_base_patch16_224", 50),  # slower
            row("deit_base_patch16_224", 500, batch=1),  # of another batch
            row("levit_384", 150),
            row("deit3_small_patch16_224", 110),  # accurate enough with more data alone
        ]
    )
    assert lines == [
        "ViG-S (81.7 %), batch 8: dominated by LeViT-384 (82.6 %, 1.50x, distilled), "
        "DeiT3-S (83.1 %, 1.10x, more data)"
    ]


@pytest.mark.parametrize(("larger", "expected"), [(True, [3, 2, 1]), (False, [1])])
def test_frontier(larger, expected):
    points = [(1, 84), (2, 83), (2, 80), (3, 81), (1, 70)]
    assert [x for x, _ in market_figure.frontier(points, larger)] == expected
