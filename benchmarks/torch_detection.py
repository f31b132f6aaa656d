"""Mask R-CNN in PyTorch: torchvision's detector on timm's backbones, with random weights.

The model is `torchvision.models.detection.MaskRCNN`, with 1000 proposals of an image in training
and inference. Its transform does not run: images have one size, pixels are normalised on the
device, and masks are left at 28 pixels a side, as in our models. Logits and deltas become float32
before boxes are computed, because bfloat16 rounds large coordinates to multiples of 4 or 8 pixels.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from benchmarks import torch_peers
from benchmarks.candidates import Candidate
from benchmarks.torch_backbone import BACKBONES, Backbone
from vig_jax.bench.batches import ellipse, random_objects
from vig_jax.bench.programs import TRAIN_MACS

__all__ = ["BACKBONES", "candidates"]

CHANNELS = 256
CLASSES = 81  # of COCO and the background
PROPOSALS = 1000  # of an image
DETECTIONS = 100  # of an image
CANDIDATES = 1000  # of an image: pairs of a region and a class above the least score
_SIDES, _RATIOS = ((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5

Maps = dict[str, torch.Tensor]
Target = dict[str, torch.Tensor]


def candidates(
    name: str,
    *,
    image_size: tuple[int, int],
    batch_size: int,
    train: bool,
    compile_modes: Sequence[str],
) -> Iterator[Candidate | str]:
    """Returns each variant of a model, with shared parameters, or why it is not measured.

    Compiled variants compile the backbone and the feature pyramid; the rest runs eager.

    Args:
        name: a key of `BACKBONES`.
        image_size: height and width, pixels, multiples of 32.
        batch_size: images per call.
        train: time forward, loss, backward and AdamW instead of boxes and masks.
        compile_modes: modes of `torch.compile`; none: eager only.
    """

    def prepare(pixels: torch.Tensor) -> torch_peers.Prepared:
        model = detector(name, image_size)
        start, forward = _inference(model, pixels)
        flops = torch_peers.flops_of(forward, pixels[:1]) * (TRAIN_MACS if train else 1)
        if train:
            start, forward = _training(model.float(), batch_size, image_size)
        return torch_peers.Prepared(model, start, forward, flops)

    return torch_peers.variants(
        name,
        prepare,
        image_size=image_size,
        batch_size=batch_size,
        compile_modes=compile_modes,
    )


def detector(name: str, image_size: tuple[int, int]) -> MaskRCNN:
    """Makes a model with random weights on the device, in channels-last layout."""
    torch.manual_seed(0)
    model = MaskRCNN(
        Pyramid(Backbone(name, image_size)),
        CLASSES,
        rpn_anchor_generator=Anchors(_SIDES, _RATIOS),
        rpn_post_nms_top_n_train=PROPOSALS,
        rpn_post_nms_top_n_test=PROPOSALS,
        box_detections_per_img=DETECTIONS,
    )
    for module in (model.rpn.head, model.roi_heads.box_predictor):
        module.register_forward_hook(lambda module, inputs, outputs: _wide(outputs))
    return model.to(torch_peers.DEVICE, memory_format=torch.channels_last)


class Pyramid(nn.Module):
    """A backbone and torchvision's feature pyramid with five maps.

    Args:
        backbone: has four maps.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.body = backbone
        self.fpn = FeaturePyramidNetwork(backbone.widths, CHANNELS, LastLevelMaxPool())
        self.out_channels = CHANNELS

    def forward(self, images: torch.Tensor) -> Maps:
        """Returns maps of strides 4, 8, 16, 32 and 64 by torchvision's names."""
        maps: Maps = self.fpn({str(i): x for i, x in enumerate(self.body(images))})
        return maps


class Anchors(AnchorGenerator):
    """torchvision's anchors in float32, whatever the dtype of the maps."""

    def set_cell_anchors(self, dtype: torch.dtype, device: torch.device) -> None:
        """Moves the anchors of a position to a device."""
        super().set_cell_anchors(torch.float32, device)


def _wide(outputs: Any) -> Any:
    """Returns a tensor, or nested sequences of tensors, in float32."""
    if isinstance(outputs, torch.Tensor):
        return outputs.float()
    return type(outputs)(_wide(x) for x in outputs)


def _autocast() -> torch.autocast:
    return torch.autocast(torch_peers.DEVICE, torch.bfloat16)


def _images(pixels: torch.Tensor) -> ImageList:
    return ImageList(pixels, [(pixels.shape[2], pixels.shape[3])] * len(pixels))


def _inference(model: MaskRCNN, pixels: torch.Tensor) -> tuple[torch_peers.Start, Any]:
    """Prepares inference, pixels to boxes with scores, labels and masks. Weights are bfloat16.

    The least score is set so that these pixels have `CANDIDATES` of an image: in a new model, no
    class has the default least score, and there would be nothing to suppress and no mask.

    Raises:
        RuntimeError: the scores of the pixels are not finite.
    """
    model.eval().to(torch.bfloat16)
    normalise = torch_peers.normalisation()

    @torch.compiler.disable
    def found(pixels: torch.Tensor, maps: Maps) -> torch.Tensor:
        with _autocast():
            images = _images(pixels)
            proposals, _ = model.rpn(images, maps)
            detections, _ = model.roi_heads(maps, proposals, images.image_sizes)
        return torch.cat([detection["scores"] for detection in detections])

    with torch.inference_mode():
        scores = class_scores(model, pixels, model.backbone(normalise(pixels)))
    if not torch.isfinite(scores).all():
        raise RuntimeError("scores are not finite")
    count = min(len(pixels) * CANDIDATES, scores.numel())
    model.roi_heads.score_thresh = float(scores.flatten().topk(count).values[-1])
    return torch_peers.start_inference, lambda pixels: found(
        pixels, model.backbone(normalise(pixels))
    )


def class_scores(model: MaskRCNN, pixels: torch.Tensor, maps: Maps) -> torch.Tensor:
    """Returns the probabilities of the classes in all proposals, without the background's.

    Args:
        model: for inference.
        pixels: a batch of images.
        maps: of the images.
    """
    heads, images = model.roi_heads, _images(pixels)
    with _autocast():
        proposals, _ = model.rpn(images, maps)
        pooled = heads.box_roi_pool(maps, proposals, images.image_sizes)
        logits, _ = heads.box_predictor(heads.box_head(pooled))
    return logits.softmax(dim=-1)[:, 1:]


def _training(
    model: MaskRCNN, batch_size: int, image_size: tuple[int, int]
) -> tuple[torch_peers.Start, Any]:
    """Prepares a step: float32 parameters, bfloat16 computation, the sum of the losses, AdamW."""
    model.train()
    normalise = torch_peers.normalisation()

    @torch.compiler.disable
    def loss(pixels: torch.Tensor, maps: Maps, targets: list[Target]) -> torch.Tensor:
        with _autocast():
            images = _images(pixels)
            proposals, losses = model.rpn(images, maps, targets)
            _, others = model.roi_heads(maps, proposals, images.image_sizes, targets)
        return torch.stack([*losses.values(), *others.values()]).sum()

    def loss_fn(pixels: torch.Tensor, targets: list[Target]) -> torch.Tensor:
        with _autocast():
            maps = model.backbone(normalise(pixels))
        return loss(pixels, maps, targets)

    targets = training_targets(batch_size, image_size)
    return torch_peers.training_start(list(model.parameters()), targets, ema=False), loss_fn


def training_targets(batch_size: int, image_size: tuple[int, int]) -> list[Target]:
    """Returns the objects of our first batch in torchvision's format, with masks of whole images.

    Args:
        batch_size: number of images.
        image_size: height and width of the images.
    """
    objects = random_objects(batch_size, image_size, CLASSES - 1, 0)
    targets = []
    for boxes, labels in zip(objects["boxes"], objects["labels"], strict=True):
        masks = torch.zeros((len(boxes), *image_size), dtype=torch.uint8)
        for mask, box in zip(masks, boxes.round().astype(int).tolist(), strict=True):
            left, top, right, bottom = box
            drawn = torch.from_numpy(ellipse(bottom - top, right - left))
            mask[top:bottom, left:right] = drawn
        target = {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(labels).long() + 1,
            "masks": masks,
        }
        targets.append({name: x.to(torch_peers.DEVICE) for name, x in target.items()})
    return targets
