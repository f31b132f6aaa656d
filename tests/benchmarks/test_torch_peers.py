"""The peers' models in PyTorch, on a CPU; skipped where PyTorch or timm is missing."""

import pytest

torch = pytest.importorskip("torch")
timm = pytest.importorskip("timm")

from benchmarks import torch_peers  # noqa: E402

SETTINGS = {"image_size": 64, "batch_size": 2, "train": False, "attention": "flash"}


@pytest.fixture(autouse=True)
def on_a_cpu(monkeypatch):
    monkeypatch.setattr(torch_peers, "DEVICE", "cpu")
    monkeypatch.setattr(torch_peers, "INPUTS", 1)
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)


@pytest.mark.parametrize("name", ["levit_128s", "repvit_m0_9"])
def test_logits_are_those_of_the_model_in_float32(name):
    """Norms are merged, and attention biases that were cached in float32 are made again."""
    (found,) = torch_peers.candidates(name, compile_mode=None, **SETTINGS)
    assert (found.name, found.variant) == (name, "eager")
    assert found.flops > 1e7
    pixels = found.host.put()
    logits = found.host.fetch(found.host.start(pixels))
    assert logits.dtype == torch.bfloat16
    torch.manual_seed(0)
    sizes = {"img_size": 64} if name.startswith("levit") else {}
    model = timm.create_model(name, num_classes=1000, **sizes).eval()
    with torch.inference_mode():
        expected = model(torch_peers.normalisation()(pixels).float())
    error = (logits.float() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < 0.1
    assert sum(parameter.numel() for parameter in model.parameters()) >= found.parameters


def test_a_size_that_a_model_does_not_take():
    (reason,) = torch_peers.candidates(
        "deit_tiny_patch16_224", compile_mode=None, **SETTINGS | {"image_size": 8}
    )
    assert reason.startswith("deit_tiny_patch16_224: not measured: ")
