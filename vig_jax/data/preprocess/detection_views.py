"""Sizes, random views and buckets of images for detection.

The size of a training image is known before the image is decoded: it depends on the stored size and
on random numbers that the loader draws ahead. All functions take many images at once.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64, Int, Int64

from vig_jax.config import DataConfig, DetectionConfig
from vig_jax.data.preprocess.geometry import View
from vig_jax.errors import ConfigError

DRAWS = 8
"""The number of random numbers that decide the view of an image."""

_STRIDE = 32  # pixels: the largest stride of the maps of a backbone
_LONGEST = 10**9  # pixels: no limit of the long side


class Plans(NamedTuple):
    """The views of some images.

    Attributes:
        boxes: left, top, right and bottom of the part of the image, pixels.
        sizes: width and height that the part is resized to, pixels.
        flips: whether left and right are exchanged.
    """

    boxes: Int64[np.ndarray, "n 4"]
    sizes: Int64[np.ndarray, "n 2"]
    flips: Bool[np.ndarray, "n"]

    def view(self, index: int) -> View:
        """Returns the view of one of the images."""
        left, top, right, bottom = self.boxes[index].tolist()
        width, height = self.sizes[index].tolist()
        return View(
            (left, top, right, bottom),
            (width, height),
            (0, 0, width, height),
            bool(self.flips[index]),
            pixels="opencv",
        )


@dataclasses.dataclass(frozen=True)
class DetectionViews:
    """Makes views for training from random numbers, or the one for evaluation.

    Args:
        task: `resize_scale`, `buckets`, and for training the settings of `multi_scale`.
        flip: probability.

    Raises:
        ConfigError: a bucket has no whole cells, or an image would fit into none.
    """

    task: DetectionConfig
    flip: float

    @classmethod
    def of(cls, data: DataConfig, task: DetectionConfig) -> "DetectionViews":
        """Returns the views of a config."""
        return cls(task, data.hflip)

    def __post_init__(self) -> None:
        if wrong := [side for shape in self.task.buckets for side in shape if side % _STRIDE]:
            raise ConfigError(
                f"config.task.buckets has a side of {wrong[0]} pixels; each must be a multiple of "
                f"{_STRIDE}: use {-(-wrong[0] // _STRIDE) * _STRIDE}"
            )
        long, short = max(self.task.resize_scale), min(self.task.resize_scale)
        if self.task.multi_scale != "none":
            short = min(long, max(self.task.short_sides))
        for height, width in ((short, long), (long, short)):
            if not any(h >= height and w >= width for h, w in self.task.buckets):
                raise ConfigError(
                    f"config.task.buckets={self.task.buckets} has none for images of {height} x "
                    f"{width} pixels (height x width), which the sizes in config.task allow: add "
                    f"{tuple(-(-side // _STRIDE) * _STRIDE for side in (height, width))}"
                )

    def evaluation(self, sizes: Int[np.ndarray, "n 2"]) -> Plans:
        """Returns the views of whole images.

        Args:
            sizes: width and height of the images, pixels.
        """
        long, short = max(self.task.resize_scale), min(self.task.resize_scale)
        return Plans(_whole(sizes), fit(sizes, long, short), np.zeros(len(sizes), bool))

    def training(self, sizes: Int[np.ndarray, "n 2"], draws: Float64[np.ndarray, "n d"]) -> Plans:
        """Returns the views for random numbers.

        A part is cut out of the stored image and resized once. mmdetection resizes, cuts and
        resizes again; the sizes are the same up to the rounding of the part to whole pixels.

        Args:
            sizes: width and height of the images, pixels.
            draws: in [0, 1), `DRAWS` for each image: flip, crop or not, short side, short side
                before the crop, width and height of the crop, its left and top.
        """
        flips = draws[:, 0] < self.flip
        if self.task.multi_scale == "none":
            return self.evaluation(sizes)._replace(flips=flips)
        boxes = _whole(sizes)
        if self.task.multi_scale == "resize_crop":
            crops = self._crops(sizes, draws)
            boxes = np.where(draws[:, 1, None] < 0.5, boxes, crops)
        short = _choice(self.task.short_sides, draws[:, 2])
        long = max(self.task.resize_scale)
        return Plans(boxes, fit(boxes[:, 2:] - boxes[:, :2], long, short), flips)

    def buckets(self, plans: Plans) -> Int64[np.ndarray, "n"]:
        """Returns the number of the smallest bucket for each view, in `task.buckets`.

        Of buckets of one size, the one of the image's orientation is taken.
        """
        buckets = np.array(self.task.buckets, np.int64)
        heights, widths = buckets.T
        width, height = plans.sizes[:, :1], plans.sizes[:, 1:]
        fits = (width <= widths) & (height <= heights)
        turned = (width < height) != (widths < heights)
        cost = np.where(fits, 2 * heights * widths + turned, np.iinfo(np.int64).max)
        return cost.argmin(axis=1)

    def _crops(
        self, sizes: Int[np.ndarray, "n 2"], draws: Float64[np.ndarray, "n d"]
    ) -> Int64[np.ndarray, "n 4"]:
        """Returns random parts of images, in pixels of the stored image."""
        short = _choice(self.task.crop_short_sides, draws[:, 3])
        resized = fit(sizes, _LONGEST, short)
        least, most = (np.minimum(resized, side) for side in self.task.crop_sides)
        crop = least + (draws[:, 4:6] * (most - least + 1)).astype(np.int64)
        corner = (draws[:, 6:8] * (resized - crop + 1)).astype(np.int64)
        scale = sizes / resized
        low = (corner * scale + 0.5).astype(np.int64)
        low = np.minimum(low, sizes - 1)
        high = ((corner + crop) * scale + 0.5).astype(np.int64)
        return np.concatenate([low, np.minimum(np.maximum(high, low + 1), sizes)], axis=1)


def fit(
    sizes: Int[np.ndarray, "n 2"], long: int, short: int | Int64[np.ndarray, "n"]
) -> Int64[np.ndarray, "n 2"]:
    """Returns the largest sizes that fit into a long and a short side, with the aspect kept.

    Args:
        sizes: width and height of the images, at least 1 pixel.
        long: limit of the longer side, pixels.
        short: limit of the shorter side, pixels; one for all images or one for each.

    Returns:
        Width and height in pixels, rounded to the nearest, halves up; at least 1.
    """
    factor = np.minimum(long / sizes.max(axis=1), short / sizes.min(axis=1))
    return np.maximum(1, (sizes * factor[:, None] + 0.5).astype(np.int64))


def _whole(sizes: Int[np.ndarray, "n 2"]) -> Int64[np.ndarray, "n 4"]:
    return np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int64)


def _choice(values: tuple[int, ...], draws: Float64[np.ndarray, "n"]) -> Int64[np.ndarray, "n"]:
    """Returns one of the values for each number in [0, 1), all with the same probability."""
    return np.array(values, np.int64)[(draws * len(values)).astype(np.int64)]
