"""The segmentation models in PyTorch, on a CPU; skipped where PyTorch or timm is missing."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("timm")

from benchmarks import torch_peers, torch_segmentation  # noqa: E402
from tests import golden_seg  # noqa: E402

WIDTHS = (96, 192, 384, 768)  # of Swin-T and ConvNeXt-T


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


def heads(golden):
    """Returns both heads with the golden weights, in float64."""
    widths, classes = golden.facts["in_channels"], golden.facts["num_classes"]
    decode = torch_segmentation.UPerHead(widths, golden.facts["channels"], classes)
    aux = torch_segmentation.FCNHead(widths[2], golden.facts["aux_channels"], classes)
    values = golden.below("param/") | golden.below("buffer/")
    for name, head in (("decode_head.", decode), ("auxiliary_head.", aux)):
        own = {k[len(name) :]: torch.tensor(v) for k, v in values.items() if k.startswith(name)}
        missing, unexpected = head.double().load_state_dict(own, strict=False)
        assert not unexpected
        assert all(key.endswith("num_batches_tracked") for key in missing)
    return decode, aux


def maps(golden, prefix):
    return [torch.tensor(x).double() for x in golden_seg.numbered(golden.arrays, prefix)]


def test_sizes_of_the_heads():
    decode = torch_segmentation.UPerHead(WIDTHS, torch_segmentation.CHANNELS, 150)
    aux = torch_segmentation.FCNHead(WIDTHS[2], torch_segmentation.AUX_CHANNELS, 150)
    assert (parameters(decode), parameters(aux)) == (31_497_366, 923_798)


def test_logits_are_those_of_mmsegmentation():
    golden = golden_seg.load("heads_forward")
    decode, aux = (head.eval() for head in heads(golden))
    for kind in golden.facts["pyramids"]:
        levels = maps(golden, f"input/{kind}/")
        with torch.no_grad():
            found = {"decode": decode(levels), "aux": aux(levels[2])}
        for name, logits in found.items():
            expected = golden.arrays[f"{kind}/logits_{name}"]
            assert golden_seg.relative_error(logits.numpy(), expected) < 1e-12


def test_loss_is_that_of_mmsegmentation():
    golden = golden_seg.load("heads_train_even")
    decode, aux = (head.train() for head in heads(golden))
    decode.dropout.p = aux.dropout.p = 0.0
    levels = maps(golden, "input/")
    labels = torch.tensor(golden.arrays["label"]).long()
    assert (labels == torch_segmentation.IGNORED).any()
    total = torch_segmentation.loss(decode(levels), aux(levels[2]), labels)
    # The loss is computed in float32.
    assert float(total.detach()) == pytest.approx(float(golden.arrays["loss/total"]), rel=1e-6)


@pytest.fixture
def cpu(monkeypatch):
    """Runs on the CPU what is made for a GPU."""
    monkeypatch.setattr(torch_peers, "DEVICE", "cpu")
    for name in ("memory_allocated", "max_memory_allocated", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)


@pytest.mark.parametrize(
    ("name", "backbone"), [("swin_tiny", 27_517_818), ("convnext_tiny", 27_818_592)]
)
def test_sizes_of_the_models(name, backbone, cpu):
    """The backbones are the published classifiers without their last norm and layer."""
    for train in (False, True):
        model = torch_segmentation.segmentor(name, (512, 512), train=train)
        assert parameters(model) == backbone + 2 * sum(WIDTHS) + 31_497_366 + train * 923_798


@pytest.mark.parametrize(
    ("name", "train"), [("swin_tiny", False), ("swin_tiny", True), ("convnext_tiny", False)]
)
def test_models_run(name, train, cpu):
    given = {"image_size": (32, 64), "batch_size": 2, "train": train, "compile_modes": []}
    (eager,) = torch_segmentation.candidates(name, **given)
    assert not isinstance(eager, str), eager
    assert (eager.name, eager.variant) == (name, "eager")
    assert eager.flops > 1e9
    eager.run(1)


def test_inference_gives_label_maps_and_training_lowers_the_loss(cpu, monkeypatch):
    monkeypatch.setattr(torch_segmentation, "CHANNELS", 8)
    model = torch_segmentation.segmentor("swin_tiny", (32, 64), train=True)
    (pixels, *_) = torch_peers.random_images(2, 32, 64, channels_last=True)
    start, forward = torch_segmentation._training(model, 2, (32, 64))
    losses = [float(start(forward, pixels)) for _ in range(4)]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]
    start, forward = torch_segmentation._inference(model, pixels)
    labels = start(forward, pixels)
    assert (labels.shape, labels.dtype) == ((2, 32, 64), torch.int64)
    assert 0 <= int(labels.min()) <= int(labels.max()) < torch_segmentation.CLASSES
    model.decode_head.conv_seg.bias.data[0] = torch.nan
    with pytest.raises(RuntimeError, match="logits are not finite"):
        torch_segmentation._inference(model, pixels)
