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


TASK_CONFIGS["segmentation"] = SegmentationConfig
