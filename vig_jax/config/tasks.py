"""Typed settings of the built-in tasks, `config.task`."""

import dataclasses
from typing import Annotated, Literal

from vig_jax.config.schema import (
    TASK_CONFIGS,
    Ascending,
    Count,
    Fraction,
    NonNegative,
    Positive,
    PositiveInt,
    Probability,
    Share,
    TaskConfig,
)


@dataclasses.dataclass(frozen=True)
class SegmentationConfig(TaskConfig):
    """Semantic segmentation: UperNet's heads, their loss, and the geometry of the images.

    Training crops are `config.data.image_size` pixels a side. The size of an evaluation image, and
    that of a training image before its random ratio, is the largest that fits into `resize_scale`
    with the aspect kept.
    """

    channels: PositiveInt = 512  # width of UPerHead
    aux_channels: Count = 256  # width of the auxiliary FCNHead; 0: no auxiliary head
    aux_weight: NonNegative = 0.4  # of the auxiliary loss
    dropout: Fraction = 0.1  # of whole channels before the logits
    norm_last: bool = False  # plain models: apply the backbone's norm to the last map
    # False: the loss is averaged over all pixels (mmsegmentation); True: over labelled ones.
    avg_non_ignore: bool = False
    reduce_zero_label: bool = False  # label 0 is ignored, label k is class k - 1
    resize_scale: tuple[PositiveInt, PositiveInt] = (2048, 512)  # long and short side, pixels
    resize_ratio: Annotated[tuple[Positive, Positive], Ascending()] = (1.0, 1.0)  # random factor
    crop_max_share: Share = 1.0  # most of a training crop that one class may cover
    photometric: bool = False  # random brightness, contrast, saturation and hue in training
    eval_mode: Literal["slide", "whole"] = "slide"
    eval_stride: PositiveInt = 341  # pixels between sliding windows of `config.data.image_size`
    eval_scales: tuple[Positive, ...] = (1.0,)  # factors on `resize_scale`; several are averaged
    eval_flip: bool = False  # average with the mirror image


@dataclasses.dataclass(frozen=True)
class DetectionConfig(TaskConfig):
    """Mask R-CNN: detection of boxes, and with `masks` instance segmentation.

    Defaults are those of mmdetection for COCO. An image is resized to the largest size that fits
    into `resize_scale` with the aspect kept, and padded to the smallest of `buckets` that holds it.
    """

    masks: bool = True  # instance segmentation; False: boxes alone
    # Images.
    resize_scale: tuple[PositiveInt, PositiveInt] = (1333, 800)  # long and short side, pixels
    # Training. "resize": the short side is one of `short_sides`. "resize_crop": or else, in half of
    # the cases, it is one of `crop_short_sides`, a part of `crop_sides` pixels a side is cut out,
    # and its short side becomes one of `short_sides`. The long side is at most that of
    # `resize_scale`.
    multi_scale: Literal["none", "resize", "resize_crop"] = "none"
    short_sides: tuple[PositiveInt, ...] = tuple(range(480, 801, 32))
    crop_short_sides: tuple[PositiveInt, ...] = (400, 500, 600)
    crop_sides: Annotated[tuple[PositiveInt, PositiveInt], Ascending()] = (384, 600)
    # Height and width of the padded images; a program is compiled for each.
    buckets: tuple[tuple[PositiveInt, PositiveInt], ...] = (
        *((800, 1088), (800, 1216), (800, 1344)),
        *((1088, 800), (1216, 800), (1344, 800)),
    )
    max_boxes: PositiveInt = 100  # of a training image; the smallest of more are left out
    mask_side: PositiveInt = 112  # of an object's mask, cut to its box, pixels
    # Neck and anchors.
    channels: PositiveInt = 256  # of the pyramid, the RPN head and the mask head
    anchor_scale: Positive = 8.0  # side of a square anchor over the stride
    anchor_ratios: tuple[Positive, ...] = (0.5, 1.0, 2.0)  # height over width
    # Region proposal network.
    rpn_positive: Share = 0.7  # least IoU of a positive anchor
    rpn_negative: Share = (
        0.3  # highest IoU of the background, and least IoU of the low-quality rule
    )
    rpn_samples: PositiveInt = 256  # anchors of an image in the loss
    rpn_positive_share: Share = 0.5  # of them that may be positive
    rpn_nms: Share = 0.7
    proposals: PositiveInt = 1000  # of an image, in training and evaluation
    train_level_proposals: PositiveInt = 2000  # best anchors of a level before NMS, in training
    eval_level_proposals: PositiveInt = 1000  # the same in evaluation
    # Box and mask head.
    roi_positive: Share = 0.5  # least IoU of a positive region; others are background
    roi_samples: PositiveInt = 512  # regions of an image in the loss
    roi_positive_share: Share = 0.25  # of them that may be positive
    sampling_ratio: PositiveInt = 2  # samples of RoIAlign along a side of a bin
    box_channels: PositiveInt = 1024  # width of the box head
    # Detections.
    score_threshold: Probability = 0.05  # a detection has more
    nms: Share = 0.5  # of the detections of a class
    detections: PositiveInt = 100  # of an image
    # Weights of the losses.
    rpn_class_weight: NonNegative = 1.0
    rpn_box_weight: NonNegative = 1.0
    class_weight: NonNegative = 1.0
    box_weight: NonNegative = 1.0
    mask_weight: NonNegative = 1.0


TASK_CONFIGS["segmentation"] = SegmentationConfig
TASK_CONFIGS["detection"] = DetectionConfig
