"""Decodes JPEG files with simplejpeg: Pillow's pixels in less time, and damage is reported."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vig_jax.data.preprocess import limits

try:
    import simplejpeg
except ImportError:
    simplejpeg = None


def decode_jpeg(
    contents: bytes, max_pixels: int = limits.MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"] | None:
    """Decodes an ordinary colour JPEG.

    Args:
        contents: of an image file.
        max_pixels: width times height; beyond it the file is left to Pillow, which refuses it.

    Returns:
        RGB pixels, perhaps read-only. None if Pillow must decode the file: simplejpeg is not
        installed, the format or the colours are others (gray, CMYK), or the file is damaged or
        enormous.
    """
    if simplejpeg is None or not contents.startswith(b"\xff\xd8\xff"):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(contents)
        if colours != "YCbCr" or height * width > (Image.MAX_IMAGE_PIXELS or height * width):
            return None
        limits.check_size(width, height, max_pixels)
        limits.check_scans(contents, width, height, max_pixels)
        return simplejpeg.decode_jpeg(contents)
    except ValueError:  # also UndecodableImageError
        return None


def damage_of_jpeg(contents: bytes) -> str | None:
    """Returns libjpeg's complaint about a JPEG that Pillow decodes, or None.

    The whole file is read, but only an eighth of each side is computed.

    Args:
        contents: of an image file that keeps the limits.
    """
    if simplejpeg is None or not contents.startswith(b"\xff\xd8\xff"):
        return None
    try:
        _, _, colours, _ = simplejpeg.decode_jpeg_header(contents)
        space = {"Gray": "GRAY", "CMYK": "CMYK", "YCCK": "CMYK"}.get(colours, "RGB")
        simplejpeg.decode_jpeg(contents, space, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:
        return str(error)
    return None
