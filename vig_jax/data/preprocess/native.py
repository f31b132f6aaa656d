"""Preprocessing of images at their native sizes: several lie side by side in a row of tokens.

A token is a square patch. An image keeps its pixels and its aspect: its sides are rounded to whole
patches, and it is made smaller only if it has too many of them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Int64, Shaped, UInt8
from PIL import Image

from vig_jax.config import DataConfig
from vig_jax.data.dataset import Example
from vig_jax.data.preprocess.classification import check_data, labelled
from vig_jax.data.preprocess.geometry import Pixels, View, image_size, random_resized_crop_box
from vig_jax.data.preprocess.protocol import Spec
from vig_jax.errors import ConfigError


class RowShape(NamedTuple):
    """The shape of a row of tokens.

    Attributes:
        patch_size: pixels per token and side, P.
        tokens: tokens of a row, T.
        images: images of a row at most, N.
        image_tokens: tokens of an image at most.
    """

    patch_size: int
    tokens: int
    images: int
    image_tokens: int

    @classmethod
    def from_data(cls, data: DataConfig, patch_size: int) -> "RowShape":
        """Returns the shape that the settings ask for.

        Args:
            data: `max_tokens`, `row_images`, `row_tokens`, and `image_size` as the default size.
            patch_size: of the model.

        Raises:
            ConfigError: an image of the largest size, or the images of a row at their smallest, do
                not fit into a row.
        """
        most = data.max_tokens or max(1, data.image_size // patch_size) ** 2
        tokens = data.row_tokens or data.row_images * most
        least = max(most, data.row_images)
        if tokens < least:
            raise ConfigError(
                f"config.data.row_tokens={tokens} is too small for an image of {most} tokens, or "
                f"for {data.row_images} images: set it to at least {least}, or lower "
                "config.data.max_tokens or config.data.row_images"
            )
        return cls(patch_size, tokens, data.row_images, most)


def native_grids(
    sizes: Int[np.ndarray, "n 2"], patch_size: int, most: int
) -> Int64[np.ndarray, "n 2"]:
    """Returns rows and columns of patches of images: at least 1, and `most` in the product.

    Args:
        sizes: width and height of the images, pixels.
        patch_size: pixels per patch and side.
        most: patches of an image at most.
    """
    exact: Float[np.ndarray, "n 2"] = sizes[:, ::-1] / patch_size
    exact = exact * np.minimum(1, np.sqrt(most / np.maximum(exact.prod(axis=1), 1e-9)))[:, None]
    rounded = np.maximum(1, np.rint(exact))
    small = rounded.prod(axis=1, keepdims=True) <= most
    grids = np.where(small, rounded, np.maximum(1, np.floor(exact)))
    # A strip of one patch across may still be too long.
    return np.maximum(1, np.minimum(grids, most // grids[:, ::-1])).astype(np.int64)


def split_patches(
    image: Shaped[np.ndarray, "H W C"], patch_size: int
) -> Shaped[np.ndarray, "n P P C"]:
    """Returns the patches of an image row by row; its sides are multiples of `patch_size`."""
    height, width, channels = image.shape
    shape = (height // patch_size, patch_size, width // patch_size, patch_size, channels)
    return image.reshape(shape).swapaxes(1, 2).reshape(-1, patch_size, patch_size, channels)


@dataclasses.dataclass(frozen=True)
class NativePreprocess:
    """Makes rows of tokens from images and their labels; see `PackedPreprocess`.

    The arrays of a row of T tokens and at most N images are `patches` uint8 [T, P, P, 3], the
    images one after the other and then zeros; `sizes` int32 [N, 2], rows and columns of each image
    in patches, 0 for no image; and `label` int32 [N].

    In training, a crop has the pixels of the image, and its size is rounded like that of an image.
    In evaluation the whole image is used; `data.crop_pct` is not.

    Args:
        data: crop, flip, and whether the fast kernel may be used.
        shape: of a row.
        train: draw random views.

    Raises:
        ConfigError: a setting is out of range.
        DataSetError: `data.resize` is "numba" and the kernel cannot be used.
    """

    data: DataConfig
    shape: RowShape
    train: bool

    def __post_init__(self) -> None:
        check_data(self.data)

    @property
    def spec(self) -> Spec:
        """Shape and dtype of the arrays of a row."""
        side, tokens, images, _ = self.shape
        return {
            "patches": ((tokens, side, side, 3), np.dtype(np.uint8)),
            "sizes": ((images, 2), np.dtype(np.int32)),
            "label": ((images,), np.dtype(np.int32)),
        }

    @property
    def row_examples(self) -> int:
        """Images of a row: the number in training, and the most in evaluation."""
        return self.shape.images

    @property
    def row_length(self) -> int:
        """Tokens of a row."""
        return self.shape.tokens

    def lengths(self, sizes: Int[np.ndarray, "n 2"]) -> Int64[np.ndarray, "n"]:
        """Returns the tokens of whole images."""
        return native_grids(sizes, self.shape.patch_size, self.most_length).prod(axis=1)

    @property
    def most_length(self) -> int:
        """Tokens of an image at most."""
        return self.shape.image_tokens

    def __call__(
        self, example: Example, rng: np.random.Generator | None
    ) -> Mapping[str, np.ndarray]:
        """Returns `image`, whose sides are multiples of P, and `label`.

        Raises:
            UndecodableImageError: the image is truncated, empty, or not an image.
            DataSetError: the label does not fit into int32.
        """
        drawn = rng if self.train else None
        return labelled(example, self.data, lambda image: self._pixels(image, drawn))

    def row(self, examples: Sequence[Mapping[str, np.ndarray]]) -> Mapping[str, np.ndarray]:
        """Returns the arrays of a row from those of its examples, in their order.

        If the images have more tokens than the row, the largest are made smaller.
        """
        arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in self.spec.items()}
        start = 0
        images = self._fitting([example["image"] for example in examples])
        for place, (image, example) in enumerate(zip(images, examples, strict=True)):
            patches = split_patches(image, self.shape.patch_size)
            arrays["patches"][start : start + len(patches)] = patches
            arrays["sizes"][place] = np.array(image.shape[:2]) // self.shape.patch_size
            arrays["label"][place] = example["label"]
            start += len(patches)
        return arrays

    def whole(self, image: Pixels) -> UInt8[np.ndarray, "h w 3"]:
        """Returns an image as in evaluation."""
        return self._pixels(image, None)

    def _pixels(self, image: Pixels, rng: np.random.Generator | None) -> UInt8[np.ndarray, "h w 3"]:
        """Draws the view of a training image, or returns the whole image."""
        size = image_size(image)
        box, shift, flip = (0, 0, *size), (0, 0), False
        if rng is not None:
            data, padding = self.data, self.data.crop_padding
            if data.crop == "random_resized":
                box = random_resized_crop_box(*size, data.crop_scale, data.crop_ratio, rng)
            elif data.crop == "pad":
                x, y = rng.integers(-padding, padding, size=2, endpoint=True).tolist()
                shift = x, y
            flip = bool(rng.random() < data.hflip)
        left, top, right, bottom = box
        width, height = self._rounded((right - left, bottom - top), self.shape.image_tokens)
        window = (shift[0], shift[1], shift[0] + width, shift[1] + height)
        return View(box, (width, height), window, flip).image(image)

    def _rounded(self, size: tuple[int, int], most: int) -> tuple[int, int]:
        """Returns the width and height, in pixels, that an image of a size gets."""
        ((rows, columns),) = native_grids(np.array([size]), self.shape.patch_size, most).tolist()
        return columns * self.shape.patch_size, rows * self.shape.patch_size

    def _fitting(self, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]) -> list[np.ndarray]:
        """Returns the images, the largest of them made smaller if they do not fit into a row."""
        side, tokens, _, most = self.shape
        sizes = np.array([image_size(image) for image in images]).reshape(-1, 2)

        def total(limit: int) -> int:
            return int(native_grids(sizes, side, limit).prod(axis=1).sum())

        if total(most) <= tokens:
            return list(images)
        fits, fails = 1, most  # limits of the tokens of an image
        while fails - fits > 1:
            middle = (fits + fails) // 2
            fits, fails = (middle, fails) if total(middle) <= tokens else (fits, middle)
        return [self._reduced(image, fits) for image in images]

    def _reduced(self, image: UInt8[np.ndarray, "h w 3"], most: int) -> np.ndarray:
        """Returns an image of at most `most` tokens."""
        size = image_size(image)
        smaller = self._rounded(size, most)
        if smaller == size:
            return image
        view = View((0, 0, *size), smaller, (0, 0, *smaller))
        return view.image(Image.fromarray(np.ascontiguousarray(image)))
