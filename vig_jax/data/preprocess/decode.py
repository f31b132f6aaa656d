"""From an encoded file to the square uint8 image that goes to the device.

The laws are those of timm 0.4.12 and torchvision, which ViG was trained with: crop first and then
resize with Pillow's bicubic filter for training, resize the shorter side and crop the middle for
evaluation. Every function is pure; randomness comes from the generator that is passed in.
"""

import io
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vig_jax.config import DataConfig
from vig_jax.data.preprocess import resize
from vig_jax.data.preprocess.jpeg import decode_jpeg
from vig_jax.errors import UndecodableImageError

# What Pillow may take a file for. Others are no photographs, and some (EPS) start a program.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")
_CROP_ATTEMPTS = 10
# Beyond this many times the wanted side, evaluation resizes only the middle of a long image.
_LONGEST_RESIZE = 16


def decode(image: bytes | np.ndarray) -> Image.Image:
    """Decodes to RGB: no rotation by EXIF, alpha dropped, first frame of several.

    Args:
        image: contents of an image file, or pixels that are decoded already, uint8 [H, W, 3].

    Returns:
        A Pillow image of mode RGB.

    Raises:
        UndecodableImageError: truncated, empty, or not an image.
        ValueError: an array that is not uint8 [H, W, 3].
    """
    if isinstance(image, np.ndarray):
        _check_array(image)
        return Image.fromarray(image)
    try:
        opened = Image.open(io.BytesIO(image), formats=_FORMATS)
        opened.load()
        return _to_rgb(opened)
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise _undecodable(image, error) from error


def _undecodable(image: bytes, error: Exception) -> UndecodableImageError:
    """The reason in words that are the same the next time: Pillow tells an address in memory."""
    if not image:
        return UndecodableImageError("the file is empty")
    if isinstance(error, UnidentifiedImageError):
        return UndecodableImageError(
            f"no {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file: it begins with {image[:12]!r}"
        )
    return UndecodableImageError(f"{type(error).__name__}: {error}")


def load(image: bytes | np.ndarray, data: DataConfig) -> Image.Image | UInt8[np.ndarray, "H W 3"]:
    """Decodes for `train_image` and `eval_image`.

    Args:
        image: as for `decode`.
        data: `resize` says whether the fast kernel may be used.

    Returns:
        The pixels that `decode` gives: for the kernel as an array, which need not be writable, and
        for Pillow as its own image.

    Raises:
        UndecodableImageError: as `decode` does.
        ValueError: as `decode` does.
    """
    if data.resize == "pillow" or resize.why_not():
        return decode(image)
    if isinstance(image, np.ndarray):
        _check_array(image)
        return image
    pixels = decode_jpeg(image)
    return np.asarray(decode(image)) if pixels is None else pixels


def _check_array(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"an image array must be uint8 [H, W, 3]; this is {image.dtype} {image.shape}"
        )


class Header(NamedTuple):
    """What the first bytes of an image file say."""

    format: str  # Pillow's name, e.g. "JPEG"
    mode: str  # Pillow's name, e.g. "RGB", "CMYK", "L"
    width: int  # pixels
    height: int  # pixels
    progressive: bool  # a JPEG that takes longer to decode


def read_header(image: bytes) -> Header:
    """Reads format and size without decoding.

    Args:
        image: contents of an image file.

    Raises:
        UndecodableImageError: not an image.
    """
    try:
        opened = Image.open(io.BytesIO(image), formats=_FORMATS)
    except Exception as error:  # of as many kinds as in `decode`
        raise _undecodable(image, error) from error
    progressive = bool(opened.info.get("progressive"))
    return Header(opened.format or "?", opened.mode, opened.width, opened.height, progressive)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Sixteen bits per pixel: keep the upper eight. Pillow would saturate instead.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same colours, and no warning about the palette
    return image.convert("RGB")


def train_image(
    image: Image.Image | UInt8[np.ndarray, "H W 3"], data: DataConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "S S 3"]:
    """Random crop by `data.crop`, then a horizontal flip with probability `data.hflip`.

    Args:
        image: RGB, any size; an array is resized by `vig_jax.data.preprocess.resize`.
        data: S is `data.image_size`.
        rng: consumed by the crop and the flip.

    Returns:
        The augmented image.
    """
    side = data.image_size
    if isinstance(image, np.ndarray):
        if data.crop == "random_resized":
            height, width, _ = image.shape
            box = random_resized_crop_box(width, height, data.crop_scale, data.crop_ratio, rng)
            return resize.resize_box(image, box, side, side, flip=rng.random() < data.hflip)
        image = Image.fromarray(image)
    if data.crop == "random_resized":
        box = random_resized_crop_box(
            image.width, image.height, data.crop_scale, data.crop_ratio, rng
        )
        # Crop apart from resize: the filter must not see pixels outside the box.
        image = _resize(image.crop(box), side, side)
    else:
        image = _resize(image, side, side)
        if data.crop == "pad":
            padding = data.crop_padding
            left, top = rng.integers(-padding, padding, size=2, endpoint=True).tolist()
            image = image.crop((left, top, left + side, top + side))  # zeros outside
    if rng.random() < data.hflip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def eval_image(
    image: Image.Image | UInt8[np.ndarray, "H W 3"], data: DataConfig
) -> UInt8[np.ndarray, "S S 3"]:
    """Resizes the shorter side to `int(image_size / crop_pct)` and takes the middle square.

    An image whose shorter side is right already is not resampled.

    Args:
        image: RGB, any size; an array is resized by `vig_jax.data.preprocess.resize`.
        data: S is `data.image_size`.

    Returns:
        The S x S middle.
    """
    side = data.image_size
    short = int(side / data.crop_pct)
    width, height = image.shape[1::-1] if isinstance(image, np.ndarray) else image.size
    if width <= height:
        new_width, new_height = short, int(short * height / width)
    else:
        new_width, new_height = int(short * width / height), short
    left = round((new_width - side) / 2)  # Python's round: halves go to the even number
    top = round((new_height - side) / 2)
    if max(new_width, new_height) > _LONGEST_RESIZE * short:
        # A strip of 1 x 10,000 pixels would become gigabytes. Same result, but for rounding.
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        x, y = width / new_width, height / new_height
        box = (left * x, top * y, (left + side) * x, (top + side) * y)
        return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
    if isinstance(image, np.ndarray):
        resized = resize.resize_box(image, (0, 0, width, height), new_width, new_height)
        return resized[top : top + side, left : left + side]
    image = _resize(image, new_width, new_height)
    return np.asarray(image.crop((left, top, left + side, top + side)))


def random_resized_crop_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[int, int, int, int]:
    """Draws the box of a RandomResizedCrop.

    Ten attempts at a share of the area uniform in `scale` with a log-uniform aspect `ratio`
    (width / height); if none fits, the largest centred box whose aspect is in the range.

    Args:
        width: of the image, pixels.
        height: of the image, pixels.
        scale: least and greatest share of the area.
        ratio: least and greatest aspect.
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


def _resize(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    return image.resize((width, height), Image.Resampling.BICUBIC)
