"""JPEG files to arrays by simplejpeg: the pixels of Pillow in less time."""

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
        RGB pixels, read-only or not; None of what Pillow shall judge: without simplejpeg, other
        formats and colours (gray, CMYK), and whatever is damaged or enormous.
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
