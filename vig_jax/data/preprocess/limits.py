"""Limits that an image file must keep, checked in its header before anything is decoded."""

import struct

from vig_jax.errors import UndecodableImageError

MAX_PIXELS = 2**26
"""The number of pixels that an image may have where no setting says otherwise: 200 MB of RGB."""

_MOST_SCANS = 100  # of a progressive JPEG; encoders write ten to twenty
_SEQUENTIAL = (0xC0, 0xC1)  # markers of a frame that is not progressive
_WITHOUT_LENGTH = (0x00, 0x01, *range(0xD0, 0xDA), 0xFF)  # rare before the first scan
_START_OF_SCAN = 0xDA  # marker
_MOST_PASSES = 16  # scans of the largest image: each scan visits all pixels


def check_header(image: bytes, max_pixels: int) -> None:
    """Checks the size of a WebP, for which Pillow allocates memory as soon as it opens it.

    Args:
        image: contents of an image file.
        max_pixels: width times height.

    Raises:
        UndecodableImageError: the image is too large.
    """
    if (size := _webp_size(image)) is not None:
        check_size(*size, max_pixels)


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Checks the number of pixels.

    Raises:
        UndecodableImageError: there are none, or more than `max_pixels`.
    """
    if width < 1 or height < 1:
        raise UndecodableImageError(f"{width} x {height} pixels")
    if width * height > max_pixels:
        raise UndecodableImageError(
            f"{width} x {height} pixels, more than the limit max_image_pixels={max_pixels}: reduce "
            "the image, or raise the limit"
        )


def check_scans(image: bytes, width: int, height: int, max_pixels: int) -> None:
    """Checks the number of scans of a JPEG, and that they do not visit too many pixels.

    Raises:
        UndecodableImageError: decoding would take too long.
    """
    if _has_one_scan(image):
        return
    scans = image.count(b"\xff\xda")
    if scans > _MOST_SCANS or scans * width * height > _MOST_PASSES * max_pixels:
        raise UndecodableImageError(
            f"a JPEG of {width} x {height} pixels in {scans} scans takes too long to decode "
            f"(at most {_MOST_SCANS} scans): save it again, with fewer"
        )


def _has_one_scan(image: bytes) -> bool:
    """Returns whether a JPEG is sequential with all colours in its first scan.

    Decoders read no further scans of such a file. To count scans takes 46 us for 66 kB, this 2 us.
    """
    position, colours = 2, 0
    while image[position : position + 1] == b"\xff" and position + 10 <= len(image):
        marker = image[position + 1]
        if marker == _START_OF_SCAN:
            return image[position + 4] == colours
        if marker in _WITHOUT_LENGTH:
            return False
        if marker in _SEQUENTIAL:
            colours = image[position + 9]
        position += 2 + int.from_bytes(image[position + 2 : position + 4])
    return False


def _webp_size(image: bytes) -> tuple[int, int] | None:
    """Returns width and height of a WebP, or None for other files and damaged headers."""
    if image[:4] != b"RIFF" or image[8:12] != b"WEBP" or len(image) < 30:
        return None
    match image[12:16]:
        case b"VP8X":
            width, height = (int.from_bytes(image[i : i + 3], "little") + 1 for i in (24, 27))
        case b"VP8L":
            bits = int.from_bytes(image[21:25], "little")
            width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", image, 26))
        case _:
            return None
    return width, height
