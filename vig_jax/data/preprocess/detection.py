"""Preprocessing for detection: decode, resize and flip an image with its boxes and masks.

Sizes and pixels are those of mmdetection, which resizes with OpenCV. Images are not rotated by
their EXIF orientation, because COCO's annotations are of the stored pixels. Normalisation is on the
device.
"""

import dataclasses
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int, Int64

from vig_jax.config import DataConfig, DetectionConfig
from vig_jax.data.dataset import Example
from vig_jax.data.preprocess import opencv
from vig_jax.data.preprocess.decode import check_settings, load_checked
from vig_jax.data.preprocess.detection_views import DRAWS, DetectionViews
from vig_jax.data.preprocess.geometry import View, image_size
from vig_jax.data.preprocess.instance_masks import cut_mask
from vig_jax.data.preprocess.protocol import DAMAGED, Spec
from vig_jax.errors import DataSetError, UndecodableImageError

Bucket = tuple[int, int]  # height and width, pixels

_LEAST_SIDE = 0.01  # pixels, of a box in a view
_IDS = 2**31  # of images, in int32
_UINT8, _INT32, _FLOAT32 = np.dtype(np.uint8), np.dtype(np.int32), np.dtype(np.float32)


@dataclasses.dataclass(frozen=True)
class DetectionPreprocess:
    """Makes images of few shapes, the buckets, and for training their boxes and masks.

    The arrays of an example, in pixels of the padded image:
        image: uint8 [H, W, 3], 0 to the right of the image and below it.
        size: int32 [2], height and width of the image part.
        original: int32 [2], height and width of the stored image.
        scale: float32 [2], pixels of the image part per pixel of the stored image, along x and y.
        image_id: int32, the number of the image in its data set, modulo 2**31.
    In training also, for M = `task.max_boxes` objects with zeros behind the last one:
        boxes: float32 [M, 4], left, top, right, bottom.
        labels: int32 [M].
        valid: bool [M], which rows are objects.
        masks: uint8 [M, S, S] if `task.masks`, each cut to its box; 255 is an object.

    Args:
        data: `hflip`, and how files are decoded.
        task: sizes, buckets, and the number of boxes.
        train: draw views, and give boxes and masks.

    Raises:
        ConfigError: the buckets do not hold all images.
        DataSetError: `data.resize` is "numba" and the kernel cannot be used.
    """

    data: DataConfig
    task: DetectionConfig
    train: bool
    draws: int = dataclasses.field(default=DRAWS, init=False)

    def __post_init__(self) -> None:
        check_settings(self.data)
        _ = self._views
        if self.data.resize != "pillow" and opencv.why_not() is None:
            opencv.compile_kernels()  # so that worker processes find them in numba's cache

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """Height and width of the padded images."""
        return self.task.buckets

    def bucket(self, width: int, height: int) -> Bucket:
        """Returns the bucket of an evaluation image."""
        sizes = np.array([[width, height]])
        return self.buckets[self._views.buckets(self._views.evaluation(sizes))[0]]

    def drawn_buckets(
        self, sizes: Int[np.ndarray, "n 2"], draws: Float64[np.ndarray, "n d"]
    ) -> Int64[np.ndarray, "n"]:
        """Returns the numbers of the buckets of training images; see `DrawnBuckets`."""
        return self._views.buckets(self._views.training(sizes, draws))

    def spec_of(self, bucket: Hashable) -> Spec:
        """Returns the shape and dtype of the arrays of an example."""
        assert isinstance(bucket, tuple)
        spec: dict[str, tuple[tuple[int, ...], np.dtype]] = {
            "image": ((*bucket, 3), _UINT8),
            "size": ((2,), _INT32),
            "original": ((2,), _INT32),
            "scale": ((2,), _FLOAT32),
            "image_id": ((), _INT32),
        }
        if self.train:
            count, side = self.task.max_boxes, self.task.mask_side
            spec["boxes"] = (count, 4), _FLOAT32
            spec["labels"] = (count,), _INT32
            spec["valid"] = (count,), np.dtype(bool)
            if self.task.masks:
                spec["masks"] = (count, side, side), _UINT8
        return spec

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Makes the arrays of one example.

        Args:
            example: see `vig_jax.data.dataset.DetectionDataset`.
            rng: source of training views, of which `draws` numbers are taken. None in evaluation; a
                training view is then a fixed one.

        Raises:
            UndecodableImageError: the image cannot be decoded, or its size is not that of the
                annotations.
            DataSetError: masks are needed, but the data set has none.
        """
        image, damage = load_checked(example["image"], self.data)
        width, height = image_size(image)
        check_annotated_size((width, height), example["size"])
        sizes = np.array([[width, height]])
        if self.train:
            draws = np.full(DRAWS, 0.5) if rng is None else rng.random(DRAWS)
            plans = self._views.training(sizes, draws[None])
        else:
            plans = self._views.evaluation(sizes)
        view = plans.view(0)
        shape = self.buckets[self._views.buckets(plans)[0]]
        arrays = {
            "image": _padded(view.image(image), (*shape, 3)),
            "size": np.array(view.shape, np.int32),
            "original": np.array([height, width], np.int32),
            "scale": np.array(view.scale, np.float32),
            "image_id": np.array(example["image_id"] % _IDS, np.int32),
        }
        if self.train:
            arrays |= self.objects(example, view)
        return arrays | ({DAMAGED: np.array(damage)} if damage else {})

    def objects(self, example: Example, view: View) -> dict[str, np.ndarray]:
        """Returns the boxes, labels and masks of the objects in a view.

        Args:
            example: as for `__call__`.
            view: of the image.

        Raises:
            DataSetError: masks are needed, but the data set has none.
        """
        boxes: Float32[np.ndarray, "n 4"] = view.boxes(example["boxes"])
        kept = _largest(boxes, self.task.max_boxes)
        count = self.task.max_boxes
        arrays = {
            "boxes": _padded(boxes[kept], (count, 4)),
            "labels": _padded(example["labels"][kept], (count,)),
            "valid": np.arange(count) < len(kept),
        }
        if self.task.masks:
            side = self.task.mask_side
            masks = _masks_of(example)
            cut = np.zeros((count, side, side), np.uint8)
            for row, index in enumerate(kept.tolist()):
                cut[row] = cut_mask(masks[index], view, boxes[index], side)
            arrays["masks"] = cut
        return arrays

    @property
    def _views(self) -> DetectionViews:
        return DetectionViews.of(self.data, self.task)


def check_annotated_size(size: tuple[int, int], annotated: tuple[int, int]) -> None:
    """Checks that annotations are for an image of this width and height.

    Raises:
        UndecodableImageError: they are not.
    """
    if tuple(annotated) != size:
        raise UndecodableImageError(
            f"the image has {size[0]} x {size[1]} pixels, but the annotations are for "
            f"{annotated[0]} x {annotated[1]}: was it replaced, resized or rotated?"
        )


def _largest(boxes: Float32[np.ndarray, "n 4"], count: int) -> Int64[np.ndarray, "m"]:
    """Returns the numbers of the boxes with the largest areas, ascending; slivers are left out."""
    sides = boxes[:, 2:] - boxes[:, :2]
    kept = np.flatnonzero((sides > _LEAST_SIDE).all(axis=1))
    if len(kept) > count:
        order = np.argsort(-sides[kept].prod(axis=1), kind="stable")
        kept = np.sort(kept[order[:count]])
    return kept


def _masks_of(example: Example) -> Any:
    for name in ("instance_masks", "segmentations"):
        if name in example:
            return example[name]
    raise DataSetError(
        "config.task.masks=True needs masks of the objects, and the data set has boxes alone: set "
        "config.task.masks=False, or add segmentations to its annotations"
    )


def _padded(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Pads with zeros at the end of each axis."""
    if array.shape == shape:
        return array
    result = np.zeros(shape, array.dtype)
    result[tuple(slice(0, length) for length in array.shape)] = array
    return result
