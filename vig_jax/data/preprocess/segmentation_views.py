"""Views of images and masks for semantic segmentation: sizes, random crops, canvases.

mmsegmentation is followed: mmcv's RandomResize and Resize with `keep_ratio`, mmsegmentation's
RandomCrop with `cat_max_ratio`, and the grid of its sliding windows.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Int, UInt8

from vig_jax.config import DataConfig
from vig_jax.config.tasks import SegmentationConfig
from vig_jax.data.preprocess import opencv
from vig_jax.data.preprocess.geometry import View
from vig_jax.data.preprocess.masks import IGNORED

_CROP_ATTEMPTS = 10  # candidates that are tested; the next one is taken untested
_LEAST_MASK_SIDE = 256  # pixels, of a padded mask


@dataclasses.dataclass(frozen=True)
class CropDraws:
    """Random numbers of one training view.

    Args:
        uniform: in [0, 1), the place of the ratio between the least and the largest.
        offsets: top and left of the candidates for the crop, in pixels of the resized image. The
            first one that keeps the class rule is used, or else the last one.
        flip: left and right are exchanged.
    """

    uniform: float
    offsets: tuple[tuple[int, int], ...]
    flip: bool


@dataclasses.dataclass(frozen=True)
class TrainingViews:
    """Draws and makes training views.

    Args:
        crop: height and width, pixels.
        scale: the image is resized to fit into the long and the short side, pixels, ...
        ratio: ... both times a factor between these two.
        max_share: of the labelled pixels of a crop that one class may cover; 1: no rule.
        flip: probability.
    """

    crop: tuple[int, int]
    scale: tuple[int, int]
    ratio: tuple[float, float]
    max_share: float
    flip: float

    @classmethod
    def of(cls, data: DataConfig, task: SegmentationConfig) -> "TrainingViews":
        """Returns the views of a config."""
        crop = data.image_size, data.image_size
        return cls(crop, task.resize_scale, task.resize_ratio, task.crop_max_share, data.hflip)

    def resized(self, size: tuple[int, int], uniform: float) -> tuple[int, int]:
        """Returns width and height after the random resize, from those before it."""
        least, largest = self.ratio
        return scaled_size(size, self.scale, uniform * (largest - least) + least)

    def draw(self, size: tuple[int, int], rng: np.random.Generator) -> CropDraws:
        """Draws a view.

        Args:
            size: width and height of the image, pixels.
            rng: consumed by the ratio, the candidates and the flip, in this order.
        """
        uniform = float(rng.random())
        width, height = self.resized(size, uniform)
        free = max(height - self.crop[0], 0), max(width - self.crop[1], 0)
        shape = (_CROP_ATTEMPTS + 1 if self.max_share < 1 else 1, 2)
        offsets = rng.integers(0, free, shape, endpoint=True).tolist()
        flip = bool(rng.random() < self.flip)
        return CropDraws(uniform, tuple((top, left) for top, left in offsets), flip)

    def view(
        self,
        mask: UInt8[np.ndarray, "H W"],
        draws: CropDraws,
        lookup: UInt8[np.ndarray, "256"],
        *,
        fast: bool = True,
    ) -> tuple[View, UInt8[np.ndarray, "h w"], Int[np.ndarray, "256"]]:
        """Returns the view for the draws, the classes in it, and the pixels of each class.

        An image that is smaller than the crop is not enlarged: the view is then smaller.

        Args:
            mask: raw labels, of the size of the image.
            draws: from `draw`.
            lookup: the class of every label.
            fast: use numba if it is installed.
        """
        height, width = mask.shape
        size = self.resized((width, height), draws.uniform)
        for top, left in draws.offsets:
            window = left, top, min(left + self.crop[1], size[0]), min(top + self.crop[0], size[1])
            view = View((0, 0, width, height), size, window, draws.flip, pixels="opencv")
            rows, columns = view.nearest(axis=1)[0], view.nearest(axis=0)[0]
            labels, counts = opencv.take_labels(mask, rows, columns, lookup, fast=fast)
            labelled = counts[:IGNORED]
            if self.max_share >= 1 or labelled.max() / max(labelled.sum(), 1) < self.max_share:
                break
        return view, labels, counts


def scaled_size(
    size: tuple[int, int], scale: tuple[int, int], ratio: float = 1.0
) -> tuple[int, int]:
    """Returns the largest size that fits into a long and a short side, with the aspect kept.

    Args:
        size: width and height of the image, pixels.
        scale: long and short side in pixels, in either order.
        ratio: factor on both; the products are cut to whole pixels.

    Returns:
        Width and height in pixels, rounded to the nearest, halves up; at least 1.
    """
    long, short = max(scale), min(scale)
    factor = min(int(long * ratio) / max(size), int(short * ratio) / min(size))
    width, height = (max(1, int(side * factor + 0.5)) for side in size)
    return width, height


def sliding_side(side: int, crop: int, stride: int) -> int:
    """Returns the side of a canvas that whole windows cover.

    Args:
        side: of the image, pixels.
        crop: side of the windows, pixels.
        stride: between windows, pixels.

    Returns:
        `crop + stride (n - 1)` for the least number n of windows that cover the side; the side
        itself if one window is enough.
    """
    if side <= crop:
        return side
    return crop + stride * math.ceil((side - crop) / stride)


def mask_side(side: int) -> int:
    """Returns the least of 256, 512, 768, 1024, 1536, 2048, 3072, ... that is not below `side`."""
    power = max(_LEAST_MASK_SIDE, 1 << (side - 1).bit_length())
    middle = power * 3 // 4
    return middle if side <= middle and middle > _LEAST_MASK_SIDE * 3 // 2 else power
