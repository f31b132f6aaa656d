"""Host geometry: a view of an image, drawn once and applied to image, mask and boxes alike.

Training crops first and resizes the crop with Pillow's bicubic filter; evaluation resizes the
shorter side and crops the middle. Both follow timm 0.4.12 and torchvision, which ViG was trained
with. Views for dense prediction resize with OpenCV's pixels: `vig_jax.data.preprocess.opencv`.
"""

import dataclasses
import math
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, Shaped, UInt8
from PIL import Image

from vig_jax.config import DataConfig
from vig_jax.data.preprocess import opencv, resize

Pixels = Image.Image | UInt8[np.ndarray, "H W 3"]
Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels; right and bottom excluded

_CROP_ATTEMPTS = 10
# Beyond this aspect, only the visible part of a resized image is computed.
_LONGEST_ASPECT = 16


@dataclasses.dataclass(frozen=True)
class View:
    """A part of an image: cropped to `box`, resized to `size`, cropped to `window`, flipped.

    Args:
        box: in pixels of the image, within it.
        size: width and height after resizing, pixels.
        window: in pixels of the resized box. It may reach beyond it.
        flip: left and right are exchanged at the end.
        pixels: Pillow's bicubic filter, and for masks the pixel nearest to each centre; or OpenCV's
            bilinear filter and its nearest pixel.
    """

    box: Box
    size: tuple[int, int]
    window: Box
    flip: bool = False
    pixels: Literal["pillow", "opencv"] = "pillow"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of the result, pixels."""
        left, top, right, bottom = self.window
        return bottom - top, right - left

    def image(self, image: Pixels) -> UInt8[np.ndarray, "h w 3"]:
        """Applies the view to an image.

        Args:
            image: RGB. An array is resized by a kernel of this package, a Pillow image by Pillow or
                NumPy; the pixels are the same.

        Returns:
            [height, width, 3]; black where the window reaches beyond the image.
        """
        if self.pixels == "opencv":
            return self._image_by_opencv(image)
        if max(self.size) > _LONGEST_ASPECT * min(self.size):
            pixels = self._visible_part(image)
        elif isinstance(image, np.ndarray):
            whole = self.window == (0, 0, *self.size)
            pixels = resize.resize_box(image, self.box, *self.size, flip=self.flip and whole)
            if whole:
                return pixels
            pixels = _crop(pixels, self.window, 0)
        else:
            if self.box != (0, 0, *image.size):
                # Cropped before it is resized: the filter must not see pixels outside the box.
                image = image.crop(self.box)
            if image.size != self.size:
                image = image.resize(self.size, Image.Resampling.BICUBIC)
            if self.window != (0, 0, *self.size):
                image = image.crop(self.window)  # black outside
            pixels = np.asarray(image)
        return pixels[:, ::-1] if self.flip else pixels

    def mask(
        self, mask: Shaped[np.ndarray, "H W *rest"], fill: int = 0
    ) -> Shaped[np.ndarray, "h w *rest"]:
        """Applies the view to a mask of labels: every result pixel is the nearest mask pixel.

        Args:
            mask: of the size of the image, any dtype.
            fill: value where the window reaches beyond the image, e.g. an ignored label.

        Returns:
            [height, width, ...] of the dtype of `mask`.
        """
        columns, inside_x = self.nearest(axis=0)
        rows, inside_y = self.nearest(axis=1)
        result = mask[rows[:, None], columns]
        result[~(inside_y[:, None] & inside_x)] = fill
        return result

    def boxes(self, boxes: Float[np.ndarray, "N 4"]) -> Float[np.ndarray, "N 4"]:
        """Applies the view to boxes and clips them to it.

        Args:
            boxes: left, top, right, bottom in pixels of the image; pixel i spans i to i + 1.

        Returns:
            Boxes in pixels of the result. A box outside of the view has no area.
        """
        corners = self.points(boxes.reshape(-1, 2)).reshape(-1, 2, 2)
        if self.flip:
            corners[..., 0] = corners[:, ::-1, 0]
        height, width = self.shape
        return np.clip(corners, 0, (width, height)).reshape(-1, 4).astype(boxes.dtype)

    def points(self, points: Float[np.ndarray, "n 2"]) -> Float64[np.ndarray, "n 2"]:
        """Applies the view to points x, y in pixels of the image; they may be outside of the view.

        Returns:
            Points in pixels of the result.
        """
        result = (points - self.box[:2]) * self.scale - self.window[:2]
        if self.flip:
            result[:, 0] = self.shape[1] - result[:, 0]
        return result

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the result per pixel of the image, along x and y."""
        left, top, right, bottom = self.box
        return self.size[0] / (right - left), self.size[1] / (bottom - top)

    def nearest(self, axis: int) -> tuple[Int[np.ndarray, "n"], Bool[np.ndarray, "n"]]:
        """Returns the nearest pixel of each result pixel, and which are inside of the image.

        Args:
            axis: 0 along x, 1 along y.
        """
        position = np.arange(self.window[axis], self.window[axis + 2])
        if self.flip and axis == 0:
            position = position[::-1]
        inside = (position >= 0) & (position < self.size[axis])
        first, length = self.box[axis], self.box[axis + 2] - self.box[axis]
        if self.pixels == "opencv":
            within = np.clip(position, 0, self.size[axis] - 1)
            return first + opencv.nearest(length, self.size[axis], within), inside
        pixel = first + np.floor((position + 0.5) * (length / self.size[axis])).astype(int)
        return np.clip(pixel, first, first + length - 1), inside

    def _image_by_opencv(self, image: Pixels) -> UInt8[np.ndarray, "h w 3"]:
        """Resizes only the part of the window that is inside of the image."""
        fast = isinstance(image, np.ndarray)
        left, top, right, bottom = self.box
        cropped = np.asarray(image)[top:bottom, left:right]
        x0, y0, x1, y1 = self.window
        inner = max(x0, 0), max(y0, 0), min(x1, self.size[0]), min(y1, self.size[1])
        pixels = opencv.resize_window(cropped, self.size, inner, flip=self.flip, fast=fast)
        if inner == self.window:
            return pixels
        result = np.zeros((y1 - y0, x1 - x0, 3), np.uint8)
        x, y = (x1 - inner[2] if self.flip else inner[0] - x0), inner[1] - y0
        result[y : y + pixels.shape[0], x : x + pixels.shape[1]] = pixels
        return result

    def _visible_part(self, image: Pixels) -> UInt8[np.ndarray, "h w 3"]:
        """Resizes only the window: a strip of 1 x 10,000 pixels would become gigabytes."""
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        left, top, right, bottom = self.box
        x, y = (right - left) / self.size[0], (bottom - top) / self.size[1]
        x0, y0, x1, y1 = self.window
        part = (left + x0 * x, top + y0 * y, left + x1 * x, top + y1 * y)
        height, width = self.shape
        return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box=part))


def image_size(image: Pixels) -> tuple[int, int]:
    """Returns width and height in pixels."""
    if isinstance(image, np.ndarray):
        height, width, _ = image.shape
        return width, height
    return image.size


def draw_view(size: tuple[int, int], data: DataConfig, rng: np.random.Generator | None) -> View:
    """Draws a view of an image for training, or returns the one for evaluation.

    Args:
        size: width and height of the image, pixels.
        data: `crop` and `hflip` for training, `crop_pct` for evaluation; the view has
            `image_size` pixels a side, or in evaluation `eval_size`.
        rng: consumed by the crop, then by the flip. None: the view for evaluation.

    Returns:
        The view.
    """
    if rng is None:
        return eval_view(size, data.eval_size or (data.image_size,) * 2, data.crop_pct)
    side = data.image_size
    width, height = size
    box, window = (0, 0, width, height), (0, 0, side, side)
    if data.crop == "random_resized":
        box = random_resized_crop_box(width, height, data.crop_scale, data.crop_ratio, rng)
    elif data.crop == "pad":
        padding = data.crop_padding
        left, top = rng.integers(-padding, padding, size=2, endpoint=True).tolist()
        window = (left, top, left + side, top + side)
    return View(box, (side, side), window, flip=rng.random() < data.hflip)


def eval_view(size: tuple[int, int], shape: tuple[int, int], crop_pct: float) -> View:
    """Returns the middle of an image that was resized to just cover the view over `crop_pct`.

    For a square view the shorter side becomes `int(side / crop_pct)`.

    Args:
        size: width and height of the image, pixels.
        shape: height and width of the view, pixels.
        crop_pct: share of the resized image that the view covers, along the tighter axis.

    Returns:
        The view. An image that has the right size is not resampled.
    """
    width, height = size
    view_height, view_width = shape
    least_width, least_height = int(view_width / crop_pct), int(view_height / crop_pct)
    if width * least_height <= height * least_width:
        new_width, new_height = least_width, int(least_width * height / width)
    else:
        new_width, new_height = int(least_height * width / height), least_height
    left = round((new_width - view_width) / 2)  # Python rounds halves to the even number
    top = round((new_height - view_height) / 2)
    window = (left, top, left + view_width, top + view_height)
    return View((0, 0, width, height), (new_width, new_height), window)


def random_resized_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> Box:
    """Draws the box of a RandomResizedCrop.

    Ten attempts draw a share of the area uniformly from `scale` and a log-uniform aspect `ratio`
    (width / height). If none fits, the box is the largest centred one whose aspect is in the range.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        scale: smallest and largest share of the area.
        ratio: smallest and largest aspect.
        rng: source of the draws.

    Returns:
        left, top, right, bottom in pixels, within the image.
    """
    area = width * height
    log_ratio = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_CROP_ATTEMPTS):
        target = rng.uniform(*scale) * area
        aspect = math.exp(rng.uniform(*log_ratio))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = int(rng.integers(0, height - h, endpoint=True))
            left = int(rng.integers(0, width - w, endpoint=True))
            return left, top, left + w, top + h
    if width / height < ratio[0]:
        w, h = width, max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        w, h = max(1, round(height * ratio[1])), height
    else:
        w, h = width, height
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


def _crop(image: np.ndarray, window: Box, fill: int) -> np.ndarray:
    """Cuts a window out of an image; `fill` where the window reaches beyond it."""
    left, top, right, bottom = window
    height, width = image.shape[:2]
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        return image[top:bottom, left:right]
    result = np.full((bottom - top, right - left, *image.shape[2:]), fill, image.dtype)
    inner = image[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
    y, x = max(-top, 0), max(-left, 0)
    result[y : y + inner.shape[0], x : x + inner.shape[1]] = inner
    return result
