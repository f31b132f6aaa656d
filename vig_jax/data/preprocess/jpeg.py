"""Decodes JPEG files with simplejpeg: Pillow's pixels in less time."""

import numpy as np
from jaxtyping import UInt8
from PIL import Image

try:
    import simplejpeg
except ImportError:  # optional: pip install -e '.[fast]'
    simplejpeg = None


def decode_jpeg(contents: bytes) -> UInt8[np.ndarray, "H W 3"] | None:
    """Decodes an ordinary colour JPEG.

    Args:
        contents: of an image file.

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
        return simplejpeg.decode_jpeg(contents)
    except ValueError:
        return None
