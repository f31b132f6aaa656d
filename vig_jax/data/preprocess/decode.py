"""Decodes image files."""

import io
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vig_jax.config import DataConfig
from vig_jax.data.preprocess import limits, resize
from vig_jax.data.preprocess.jpeg import damage_of_jpeg, decode_jpeg, simplejpeg
from vig_jax.errors import DataSetError, UndecodableImageError

# The formats that Pillow may read. Others are no photographs, and some (EPS) start a program.
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM")

# `limits` refuses what is too large.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def decode(image: bytes | np.ndarray, max_pixels: int = limits.MAX_PIXELS) -> Image.Image:
    """Decodes to RGB: no rotation by EXIF, alpha dropped, first frame of several.

    Args:
        image: contents of an image file, or pixels that are decoded already, uint8 [H, W, 3].
        max_pixels: width times height of a file; checked before it is decoded.

    Returns:
        A Pillow image of mode RGB.

    Raises:
        UndecodableImageError: truncated, empty, not an image, or beyond the limits.
        ValueError: an array that is not uint8 [H, W, 3].
    """
    if isinstance(image, np.ndarray):
        _check_array(image)
        return Image.fromarray(image)
    try:
        opened = open_image(image, max_pixels)
        opened.load()
        return to_rgb(opened)
    except UndecodableImageError:
        raise
    # Pillow's readers raise OSError, SyntaxError, ValueError, struct.error, MemoryError and more.
    except Exception as error:
        raise undecodable(image, error) from error


def open_image(image: bytes, max_pixels: int) -> Image.Image:
    """Reads the header of an image file and checks the limits.

    Raises:
        Exception: of many kinds; `undecodable` makes the one to raise instead.
    """
    limits.check_header(image, max_pixels)
    opened = Image.open(io.BytesIO(image), formats=_FORMATS)
    limits.check_size(opened.width, opened.height, max_pixels)
    if opened.format == "JPEG":
        limits.check_scans(image, opened.width, opened.height, max_pixels)
    return opened


def undecodable(image: bytes, error: Exception) -> UndecodableImageError:
    """Returns an error with a reproducible message: Pillow's has a memory address in it.

    Args:
        image: contents of the file.
        error: from Pillow.
    """
    if not image:
        return UndecodableImageError("the file is empty")
    if isinstance(error, UnidentifiedImageError):
        return UndecodableImageError(
            f"not a {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]} file: it starts with "
            f"{image[:12]!r}"
        )
    return UndecodableImageError(f"{type(error).__name__}: {error}")


def load(image: bytes | np.ndarray, data: DataConfig) -> Image.Image | UInt8[np.ndarray, "H W 3"]:
    """Decodes for `View.image`; see `load_checked`."""
    return load_checked(image, data)[0]


def load_checked(
    image: bytes | np.ndarray, data: DataConfig
) -> tuple[Image.Image | UInt8[np.ndarray, "H W 3"], str | None]:
    """Decodes for `View.image` and looks for damage.

    Args:
        image: as for `decode`.
        data: `resize` says whether the fast kernel may be used, `max_image_pixels` limits the size,
            and `damaged_jpegs` says whether a damaged JPEG is used.

    Returns:
        The pixels of `decode`: an array, perhaps read-only, for the kernel, or a Pillow image. And
        the damage that the decoder found, or None.

    Raises:
        UndecodableImageError: as `decode` does, and for a damaged JPEG that is to be left out.
        ValueError: as `decode` does.
    """
    fast = data.resize != "pillow" and not resize.why_not()
    if isinstance(image, np.ndarray):
        _check_array(image)
        return (image if fast else Image.fromarray(image)), None
    if fast and (pixels := decode_jpeg(image, data.max_image_pixels)) is not None:
        return pixels, None
    decoded = decode(image, data.max_image_pixels)
    damage = damage_of(image)
    if damage and data.damaged_jpegs == "leave_out":
        raise UndecodableImageError(f"{damage} (config.data.damaged_jpegs=leave_out)")
    return (np.asarray(decoded) if fast else decoded), damage


def check_settings(data: DataConfig) -> None:
    """Checks that what the settings of decoding and resizing need is installed.

    The kernel of `resize` is compiled here, so that worker processes find it in numba's cache.

    Raises:
        DataSetError: it is not.
    """
    if data.damaged_jpegs == "leave_out" and simplejpeg is None:
        raise DataSetError(
            "config.data.damaged_jpegs=leave_out needs simplejpeg, which is not installed: pip "
            "install simplejpeg"
        )
    if data.resize != "pillow" and (reason := resize.why_not()) and data.resize == "numba":
        raise DataSetError(f"config.data.resize=numba, but {reason}; or set it to auto")


def damage_of(image: bytes | np.ndarray) -> str | None:
    """Returns the damage of an image that can be decoded, or None.

    Of the formats here only JPEG can be decoded in spite of damage that the decoder notices; Pillow
    does not report it. Needs simplejpeg: without it, the result is None.
    """
    found = None if isinstance(image, np.ndarray) else damage_of_jpeg(image)
    return f"damaged, decodable: {found}" if found else None


def _check_array(image: np.ndarray) -> None:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"an image array must be uint8 [H, W, 3]; this is {image.dtype} {image.shape}"
        )
    if not image.size:
        raise UndecodableImageError(f"{image.shape[1]} x {image.shape[0]} pixels")


class Header(NamedTuple):
    """Facts from the first bytes of an image file."""

    format: str  # Pillow's name, e.g. "JPEG"
    mode: str  # Pillow's name, e.g. "RGB", "CMYK", "L"
    width: int  # pixels
    height: int  # pixels
    progressive: bool  # a JPEG that takes longer to decode


def read_header(image: bytes, max_pixels: int = limits.MAX_PIXELS) -> Header:
    """Reads format and size without decoding.

    Args:
        image: contents of an image file.
        max_pixels: width times height.

    Raises:
        UndecodableImageError: not an image, or beyond the limits.
    """
    try:
        opened = open_image(image, max_pixels)
    except UndecodableImageError:
        raise
    except Exception as error:  # of many kinds, as in `decode`
        raise undecodable(image, error) from error
    progressive = bool(opened.info.get("progressive"))
    return Header(opened.format or "?", opened.mode, opened.width, opened.height, progressive)


def read_size(path: str | Path) -> tuple[int, int] | None:
    """Reads width and height from the beginning of an image file; None if that is impossible."""
    if not Path(path).is_file():  # a pipe would wait for its other end
        return None
    try:
        with Image.open(path, formats=_FORMATS) as opened:
            return opened.size if min(opened.size) > 0 else None
    except Exception:  # of many kinds; to decode the file gives the reason
        return None


_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # tags and a value of TIFF


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image in mode RGB: alpha is dropped, and of 16 bits the upper eight are kept.

    Raises:
        UndecodableImageError: pixels that have no defined white.
    """
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        return _upper_bits(image)
    if image.mode in ("I", "F"):
        raise UndecodableImageError(
            f"pixels of signed, 32-bit or floating-point numbers (mode {image.mode}) have no "
            "defined white: save the image with 8 or 16 bits per pixel"
        )
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # same colours, and no warning about the palette
    return image.convert("RGB")


def _upper_bits(image: Image.Image) -> Image.Image:
    """Keeps the upper eight bits of gray pixels of 9 to 16 bits. Pillow would clip at 255."""
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
    gray = (np.asarray(image) >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = 255 - gray
    return Image.fromarray(gray).convert("RGB")
