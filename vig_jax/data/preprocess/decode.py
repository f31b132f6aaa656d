"""Decodes image files."""

import io
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vig_jax.config import DataConfig
from vig_jax.data.preprocess import resize
from vig_jax.data.preprocess.jpeg import decode_jpeg
from vig_jax.errors import UndecodableImageError

# The formats that Pillow may read. Others are no photographs, and some (EPS) start a program.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")


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
    """Returns an error with a reproducible message: Pillow's has a memory address in it."""
    if not image:
        return UndecodableImageError("the file is empty")
    if isinstance(error, UnidentifiedImageError):
        return UndecodableImageError(
            f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file: it starts with "
            f"{image[:12]!r}"
        )
    return UndecodableImageError(f"{type(error).__name__}: {error}")


def load(image: bytes | np.ndarray, data: DataConfig) -> Image.Image | UInt8[np.ndarray, "H W 3"]:
    """Decodes for `View.image`.

    Args:
        image: as for `decode`.
        data: `resize` says whether the fast kernel may be used.

    Returns:
        The pixels of `decode`: an array, perhaps read-only, for the kernel, or a Pillow image.

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
    """Facts from the first bytes of an image file."""

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
    except Exception as error:  # of many kinds, as in `decode`
        raise _undecodable(image, error) from error
    progressive = bool(opened.info.get("progressive"))
    return Header(opened.format or "?", opened.mode, opened.width, opened.height, progressive)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16"):
        # Sixteen bits per pixel: keep the upper eight. Pillow would clip at 255 instead.
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same colours, and no warning about the palette
    return image.convert("RGB")
