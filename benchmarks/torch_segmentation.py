"""Semantic segmentation in PyTorch: timm's backbones with mmsegmentation's UPerHead and FCNHead.

The heads are transcribed from mmsegmentation 1.2.2 (models/decode_heads/uper_head.py, psp_head.py,
fcn_head.py) and have the names of its parameters. Weights are random.
"""

import functools
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from benchmarks import torch_peers
from benchmarks.candidates import Candidate
from benchmarks.torch_backbone import BACKBONES, Backbone
from vig_jax.bench.programs import TRAIN_MACS

__all__ = ["BACKBONES", "candidates"]

CHANNELS, AUX_CHANNELS = 512, 256
AUX_LEVEL, AUX_WEIGHT = 2, 0.4
CLASSES = 150  # of ADE20K
IGNORED = 255
_POOLED = (1, 2, 3, 6)
_DROPOUT = 0.1


def candidates(
    name: str,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    train: bool,
    compile_modes: Sequence[str],
) -> Iterator[Candidate | str]:
    """Returns each variant of a model, with shared parameters, or why it is not measured.

    Args:
        name: a key of `BACKBONES`.
        image_size: height and width, pixels.
        batch_size: images per call.
        train: time forward, loss, backward and AdamW instead of label maps of the images' size.
        compile_modes: modes of `torch.compile`; none: eager only.
    """

    def prepare(pixels: torch.Tensor) -> torch_peers.Prepared:
        model = segmentor(name, image_size, train=train)
        flops = torch_peers.count_flops(model, *image_size) * (TRAIN_MACS if train else 1)
        if train:
            start, forward = _training(model, batch_size, image_size)
        else:
            start, forward = _inference(model, pixels)
        return torch_peers.Prepared(model, start, forward, flops)

    return torch_peers.variants(
        name,
        prepare,
        image_size=image_size,
        batch_size=batch_size,
        compile_modes=compile_modes,
    )


def segmentor(name: str, image_size: tuple[int, int], *, train: bool) -> "Segmentor":
    """Makes a model with random weights on the device, in channels-last layout."""
    torch.manual_seed(0)
    model = Segmentor(Backbone(name, image_size), with_aux=train)
    return model.to(torch_peers.DEVICE, memory_format=torch.channels_last)


class Segmentor(nn.Module):
    """A backbone and the heads.

    Args:
        backbone: has four maps.
        with_aux: has the auxiliary head, which only training needs.
    """

    def __init__(self, backbone: Backbone, *, with_aux: bool):
        super().__init__()
        self.backbone = backbone
        widths = backbone.widths
        self.decode_head = UPerHead(widths, CHANNELS, CLASSES)
        self.auxiliary_head = (
            FCNHead(widths[AUX_LEVEL], AUX_CHANNELS, CLASSES) if with_aux else None
        )

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the logits of both heads, [B, classes, H / 4, W / 4] and at the other stride."""
        maps = self.backbone(images)
        aux = None if self.auxiliary_head is None else self.auxiliary_head(maps[AUX_LEVEL])
        return self.decode_head(maps), aux


class UPerHead(nn.Module):
    """UperNet's head: pyramid pooling on the coarsest map, then a feature pyramid.

    Args:
        widths: channels of the maps, finest first.
        channels: width of the head.
        classes: number of classes.
    """

    def __init__(self, widths: Sequence[int], channels: int, classes: int):
        super().__init__()
        *finer, coarsest = widths
        self.psp_modules = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(size), _conv_norm_act(coarsest, channels, 1))
            for size in _POOLED
        )
        pooled = coarsest + len(_POOLED) * channels
        self.bottleneck = _conv_norm_act(pooled, channels, 3)
        self.lateral_convs = nn.ModuleList(_conv_norm_act(width, channels, 1) for width in finer)
        self.fpn_convs = nn.ModuleList(_conv_norm_act(channels, channels, 3) for _ in finer)
        self.fpn_bottleneck = _conv_norm_act(len(widths) * channels, channels, 3)
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        """Returns the logits at the size of the finest map."""
        *finer, coarsest = maps
        pooled = [_resized(pool(coarsest), coarsest) for pool in self.psp_modules]
        laterals = [conv(x) for conv, x in zip(self.lateral_convs, finer, strict=True)]
        laterals.append(self.bottleneck(torch.cat([coarsest, *pooled], dim=1)))
        for i in range(len(laterals) - 1, 0, -1):
            laterals[i - 1] = laterals[i - 1] + _resized(laterals[i], laterals[i - 1])
        *fine, top = laterals
        levels = [conv(x) for conv, x in zip(self.fpn_convs, fine, strict=True)]
        levels = [_resized(x, levels[0]) for x in (*levels, top)]
        return self.conv_seg(self.dropout(self.fpn_bottleneck(torch.cat(levels, dim=1))))


class FCNHead(nn.Module):
    """The auxiliary head: one convolution and the classifier.

    Args:
        width: channels of the map.
        channels: width of the head.
        classes: number of classes.
    """

    def __init__(self, width: int, channels: int, classes: int):
        super().__init__()
        self.convs = nn.Sequential(_conv_norm_act(width, channels, 3))
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.conv_seg = nn.Conv2d(channels, classes, 1)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the logits at the size of the map."""
        return self.conv_seg(self.dropout(self.convs(features)))


def _conv_norm_act(width: int, channels: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(width, channels, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(
        OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels), activate=nn.ReLU(inplace=True))
    )


def _resized(features: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return _bilinear(features, size=like.shape[2:])


_bilinear = functools.partial(functional.interpolate, mode="bilinear", align_corners=False)


def loss(
    logits: torch.Tensor, aux_logits: torch.Tensor | None, labels: torch.Tensor
) -> torch.Tensor:
    """Returns the cross entropy of both heads at the labels' size, over all pixels of the batch.

    As in mmsegmentation, ignored pixels count in the denominator.

    Args:
        logits: of the decode head, [B, classes, h, w].
        aux_logits: of the auxiliary head, at another size; None: it has no loss.
        labels: int64 [B, H, W], with `IGNORED`.
    """

    def one(logits: torch.Tensor) -> torch.Tensor:
        large = _bilinear(logits.float(), size=labels.shape[1:])
        total = functional.cross_entropy(large, labels, ignore_index=IGNORED, reduction="sum")
        return total / labels.numel()

    return one(logits) if aux_logits is None else one(logits) + AUX_WEIGHT * one(aux_logits)


def _inference(model: Segmentor, pixels: torch.Tensor) -> tuple[torch_peers.Start, Any]:
    """Prepares inference, pixels to a label map of their size, all in bfloat16.

    Raises:
        RuntimeError: the logits of the pixels are not finite.
    """
    model.eval().to(torch.bfloat16)
    normalise = torch_peers.normalisation()

    def labels(pixels: torch.Tensor) -> torch.Tensor:
        logits, _ = model(normalise(pixels))
        return _bilinear(logits.float(), size=pixels.shape[2:]).argmax(dim=1)

    with torch.inference_mode():
        if not torch.isfinite(model(normalise(pixels))[0]).all():
            raise RuntimeError("logits are not finite")
    return torch_peers.start_inference, labels


def _training(
    model: Segmentor, batch_size: int, image_size: tuple[int, int]
) -> tuple[torch_peers.Start, Any]:
    """Prepares a step: float32 parameters, bfloat16 computation, the loss in float32, AdamW."""
    model.train()
    normalise = torch_peers.normalisation()

    def loss_fn(pixels: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with torch.autocast(torch_peers.DEVICE, torch.bfloat16):
            logits, aux_logits = model(normalise(pixels))
        return loss(logits, aux_logits, labels)

    generator = torch.Generator(torch_peers.DEVICE).manual_seed(0)
    shape = (batch_size, *image_size)
    labels = torch.randint(0, CLASSES, shape, device=torch_peers.DEVICE, generator=generator)
    labels[:, :8] = IGNORED
    parameters = list(model.parameters())
    return torch_peers.training_start(parameters, labels, ema=False), loss_fn
