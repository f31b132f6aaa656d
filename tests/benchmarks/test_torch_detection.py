"""Mask R-CNN in PyTorch, on a CPU; skipped where PyTorch, torchvision or timm is missing."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("timm")

from benchmarks import torch_detection, torch_peers  # noqa: E402
from vig_jax.bench.batches import random_objects  # noqa: E402

SIZE = 64, 96


@pytest.fixture(autouse=True)
def cpu(monkeypatch):
    """Runs on the CPU what is made for a GPU."""
    monkeypatch.setattr(torch_peers, "DEVICE", "cpu")
    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.parametrize("train", [False, True])
def test_candidates_run(train):
    given = {"image_size": SIZE, "batch_size": 1, "train": train, "compile_modes": []}
    (eager,) = torch_detection.candidates("convnext_tiny", **given)
    assert not isinstance(eager, str), eager
    assert (eager.name, eager.variant) == ("convnext_tiny", "eager")
    assert eager.flops > 1e9


def test_targets_are_our_objects():
    expected = random_objects(2, SIZE, torch_detection.CLASSES - 1, 0)
    targets = torch_detection.training_targets(2, SIZE)
    for i, target in enumerate(targets):
        assert np.array_equal(target["boxes"], expected["boxes"][i])
        assert np.array_equal(target["labels"], expected["labels"][i] + 1)
        assert target["masks"].shape == (len(expected["labels"][i]), *SIZE)
        for mask, box in zip(target["masks"], target["boxes"], strict=True):
            left, top, right, bottom = box.round().int().tolist()
            inside = mask[top:bottom, left:right]
            assert inside.sum() == mask.sum()
            assert 0.6 < inside.float().mean() <= 1  # an ellipse covers 0.785


def test_pyramid_anchors_and_precision():
    model = torch_detection.detector("swin_tiny", SIZE).eval()
    (pixels, *_) = torch_peers.random_images(1, *SIZE, channels_last=True)
    with torch.no_grad(), torch_detection._autocast():
        maps = model.backbone(torch_peers.normalisation()(pixels))
        logits, deltas = model.rpn.head(list(maps.values()))
        anchors = model.rpn.anchor_generator(torch_detection._images(pixels), list(maps.values()))
    assert [tuple(x.shape[2:]) for x in maps.values()] == [
        (16, 24), (8, 12), (4, 6), (2, 3), (1, 2)
    ]  # fmt: skip
    assert {x.dtype for x in maps.values()} == {torch.bfloat16}
    assert {x.dtype for x in (*logits, *deltas, *anchors)} == {torch.float32}
    assert len(anchors[0]) == 3 * (16 * 24 + 8 * 12 + 4 * 6 + 2 * 3 + 1 * 2)


def test_one_graph_is_compiled():
    """That of backbone and pyramid."""
    model = torch_detection.detector("convnext_tiny", SIZE)
    (pixels, *others) = torch_peers.random_images(1, *SIZE, channels_last=True)
    start, forward = torch_detection._inference(model, pixels)
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(forward, backend=backend, dynamic=False)
    for one in (pixels, *others):
        assert torch.equal(start(compiled, one), start(forward, one))
    assert len(graphs) == 1


def test_inference_has_detections_and_nothing_that_is_not_finite():
    model = torch_detection.detector("convnext_tiny", SIZE)
    (pixels, *_) = torch_peers.random_images(1, *SIZE, channels_last=True)
    assert model.roi_heads.score_thresh == 0.05
    start, forward = torch_detection._inference(model, pixels)
    assert 0 < model.roi_heads.score_thresh < 0.05
    scores = start(forward, pixels)
    assert 10 < len(scores) <= torch_detection.DETECTIONS
    model.roi_heads.box_predictor.cls_score.bias.data[0] = torch.nan
    with pytest.raises(RuntimeError, match="scores are not finite"):
        torch_detection._inference(model, pixels)
