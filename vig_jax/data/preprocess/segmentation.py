"""Preprocessing for semantic segmentation: decode, resize, crop and flip image and mask alike.

Sizes and pixels are those of mmsegmentation, which resizes with OpenCV. Images are not rotated by
their EXIF orientation, because masks have none. Photometric distortion and normalisation are on the
device: `vig_jax.augment.photometric`.
"""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vig_jax.config import DataConfig
from vig_jax.config.tasks import SegmentationConfig
from vig_jax.data.dataset import Example
from vig_jax.data.preprocess import opencv, png
from vig_jax.data.preprocess.decode import check_settings, load_checked
from vig_jax.data.preprocess.geometry import Pixels, View, image_size
from vig_jax.data.preprocess.masks import (
    IGNORED,
    NO_CLASS,
    check_labels,
    check_same_size,
    decode_mask,
)
from vig_jax.data.preprocess.protocol import DAMAGED, Spec
from vig_jax.data.preprocess.segmentation_views import (
    CropDraws,
    TrainingViews,
    mask_side,
    scaled_size,
    sliding_side,
)
from vig_jax.errors import UndecodableImageError

_MULTIPLE = 32  # pixels: the largest stride of the maps of a backbone
_UINT8, _INT32 = np.dtype(np.uint8), np.dtype(np.int32)


# Compared by identity: an array has no truth value.
@dataclasses.dataclass(frozen=True, eq=False)
class SegmentationPreprocess:
    """Makes training crops, or evaluation images of several sizes by buckets.

    Training gives `image` uint8 [S, S, 3], `mask` uint8 [S, S] and `size` int32 [2], the height and
    width of the image part. Pixels to the right of it and below it are 0 in the image and 255 in
    the mask.

    Evaluation gives for every scale an image on a canvas and the `size` of the image part, height
    and width, int32 [2]. The names are `image` and `size`, or with several scales `image_0`,
    `size_0`, `image_1` and so on. `mask` has the classes at the original size, with 255 to its
    right and below it. `original` is that size, height and width, int32 [2].

    Args:
        data: `image_size` is S and the side of sliding windows, `hflip` the probability of a flip.
        task: sizes, ratios, the class rule of the crop, and the mode of evaluation. "slide": the
            canvas is just large enough for windows at `eval_stride`; see `sliding_side`. "whole":
            the image is resized to sides that are rounded up to multiples of 32, and fills it.
        lookup: the class of every raw label, from `label_lookup`.
        train: make training crops.

    Raises:
        DataSetError: `data.resize` is "numba" and the kernel cannot be used.
    """

    data: DataConfig
    task: SegmentationConfig
    lookup: UInt8[np.ndarray, "256"]
    train: bool

    def __post_init__(self) -> None:
        check_settings(self.data)
        if self.data.resize != "pillow" and opencv.why_not() is None:
            opencv.compile_kernels()  # so that worker processes find them in numba's cache
            png.compiled()

    @property
    def spec(self) -> Spec:
        """Shape and dtype of the arrays of a training example."""
        side = self.data.image_size
        return {
            "image": ((side, side, 3), _UINT8),
            "mask": ((side, side), _UINT8),
            "size": ((2,), _INT32),
        }

    def bucket(self, width: int, height: int) -> Hashable:
        """Returns the sides of the canvases, and of the padded mask."""
        sizes = [self._canvas(self._eval_size(width, height, r)) for r in self.task.eval_scales]
        return tuple(sizes), (mask_side(width), mask_side(height))

    def spec_of(self, bucket: Any) -> Spec:
        """Returns the shape and dtype of the arrays of an evaluation example."""
        sizes, (mask_width, mask_height) = bucket
        spec: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
        spec |= {"mask": ((mask_height, mask_width), _UINT8), "original": ((2,), _INT32)}
        for (width, height), suffix in zip(sizes, self._suffixes(), strict=True):
            spec[f"image{suffix}"] = (height, width, 3), _UINT8
            spec[f"size{suffix}"] = (2,), _INT32
        return spec

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Makes the arrays of one example.

        Args:
            example: `image`, contents of an image file or uint8 [H, W, 3], and `mask`, contents of
                a PNG file or uint8 [H, W]. In evaluation perhaps `size`, the width and height that
                the header of the image has.
            rng: source of training views. None in evaluation; a training view is then a fixed one,
                and the whole mask is checked.

        Raises:
            UndecodableImageError: image or mask cannot be decoded, or they differ in size; a label
                has no class, or all pixels are ignored. In training, labels outside of the crop are
                not looked at.
        """
        image, damage = load_checked(example["image"], self.data)
        fast = self.data.resize != "pillow"
        image = np.asarray(image) if fast else image
        mask = decode_mask(example["mask"], self.data.max_image_pixels, fast=fast)
        width, height = image_size(image)
        check_same_size((width, height), mask)
        if "size" in example and tuple(example["size"]) != (width, height):
            raise UndecodableImageError(
                f"the image has {width} x {height} pixels, but its header had {example['size']}"
            )
        if rng is None:
            check_labels(mask, self.lookup)
        if not self.train:
            shape = mask_side(height), mask_side(width)
            masks = {"mask": _padded(self.lookup[mask], shape, IGNORED)}
            arrays = self.evaluation_images(image) | masks
        else:
            views = TrainingViews.of(self.data, self.task)
            draws = views.draw((width, height), rng) if rng else CropDraws(0.5, ((0, 0),), False)
            arrays = training_arrays(image, mask, views, draws, self.lookup)
        return arrays | ({DAMAGED: np.array(damage)} if damage else {})

    def evaluation_images(self, image: Pixels) -> dict[str, np.ndarray]:
        """Returns the arrays of evaluation, without the mask.

        Args:
            image: RGB.
        """
        width, height = image_size(image)
        arrays = {"original": np.array([height, width], np.int32)}
        for ratio, suffix in zip(self.task.eval_scales, self._suffixes(), strict=True):
            size = self._eval_size(width, height, ratio)
            view = View((0, 0, width, height), size, (0, 0, *size), pixels="opencv")
            shape = self._canvas(size)[::-1]
            arrays[f"image{suffix}"] = _padded(view.image(image), shape, 0)
            arrays[f"size{suffix}"] = np.array(view.shape, np.int32)
        return arrays

    def _suffixes(self) -> list[str]:
        scales = self.task.eval_scales
        return [f"_{i}" for i in range(len(scales))] if len(scales) > 1 else [""]

    def _eval_size(self, width: int, height: int, ratio: float) -> tuple[int, int]:
        """Returns width and height of a resized evaluation image.

        Models need sides of 32 pixels, so the aspect of very long images is not kept. With several
        scales, sides that one window covers are rounded up to multiples of 32, so that few shapes
        of windows are compiled.
        """
        size = scaled_size((width, height), self.task.resize_scale, ratio)
        if self.task.eval_mode == "whole":
            return _multiple(size[0]), _multiple(size[1])
        several, crop = len(self.task.eval_scales) > 1, self.data.image_size

        def side(length: int) -> int:
            return max(length, min(crop, _multiple(length if several else 1)))

        return side(size[0]), side(size[1])

    def _canvas(self, size: tuple[int, int]) -> tuple[int, int]:
        """Returns width and height of the canvas of an image of `size`."""
        if self.task.eval_mode == "whole":
            return size
        crop, stride = self.data.image_size, self.task.eval_stride
        return sliding_side(size[0], crop, stride), sliding_side(size[1], crop, stride)


def _multiple(side: int) -> int:
    return -(-side // _MULTIPLE) * _MULTIPLE


def training_arrays(
    image: Pixels,
    mask: UInt8[np.ndarray, "H W"],
    views: TrainingViews,
    draws: CropDraws,
    lookup: UInt8[np.ndarray, "256"],
) -> dict[str, np.ndarray]:
    """Applies given draws to an image and its mask.

    Args:
        image: RGB, of the size of the mask. For an array numba is used if it is installed.
        mask: raw labels.
        views: what the draws mean.
        draws: from `views.draw`.
        lookup: the class of every raw label.

    Returns:
        `image`, `mask` and `size`, as `SegmentationPreprocess` has them.

    Raises:
        UndecodableImageError: a label in the crop has no class, or the whole mask is ignored.
    """
    view, labels, counts = views.view(mask, draws, lookup, fast=isinstance(image, np.ndarray))
    if counts[NO_CLASS] or counts[IGNORED] == labels.size:
        check_labels(mask, lookup)  # finds the reason; a crop may be without labels
    return {
        "image": _padded(view.image(image), views.crop, 0),
        "mask": _padded(labels, views.crop, IGNORED),
        "size": np.array(view.shape, np.int32),
    }


def _padded(array: np.ndarray, shape: tuple[int, int], fill: int) -> np.ndarray:
    """Pads at the right and below."""
    height, width = array.shape[:2]
    if (height, width) == shape:
        return array
    result = np.full((*shape, *array.shape[2:]), fill, array.dtype)
    result[:height, :width] = array
    return result
