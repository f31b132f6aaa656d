import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import encoded, photo
from vig_jax.data.preprocess import opencv
from vig_jax.data.preprocess.masks import decode_mask
from vig_jax.data.preprocess.png import decode_png
from vig_jax.errors import UndecodableImageError

pytestmark = pytest.mark.skipif(opencv.why_not() is not None, reason=f"{opencv.why_not()}")

REGIONS = np.kron(np.arange(12).reshape(3, 4), np.ones((7, 9))).astype(np.uint8)
MASKS = {"regions": REGIONS, "noise": photo(31, 23)[..., 0], "one": REGIONS[:1, :1]}


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(mask, kinds, pieces=1):
    """A PNG whose rows have the given filters; their bytes are computed as PNG defines them."""
    height, width = mask.shape
    wide = np.zeros((height + 1, width + 1), int)
    wide[1:, 1:] = mask
    left, up, corner = wide[1:, :-1], wide[:-1, 1:], wide[:-1, :-1]
    distances = np.abs([up - corner, left - corner, left + up - 2 * corner])
    paeth = np.choose(np.argmin(distances, axis=0), [left, up, corner])
    predictions = [0 * left, left, up, (left + up) // 2, paeth]
    rows = [
        bytes([kinds[y % len(kinds)]])
        + ((mask[y] - predictions[kinds[y % len(kinds)]][y]) % 256).astype(np.uint8).tobytes()
        for y in range(height)
    ]
    data = zlib.compress(b"".join(rows))
    step = -(-len(data) // pieces)
    parts = [chunk(b"IDAT", data[i : i + step]) for i in range(0, len(data), step)]
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(parts) + chunk(b"IEND", b"")


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("kinds", [(0,), (1,), (2,), (3,), (4,), (0, 4, 2, 3, 1, 1, 4)])
def test_filters(mask, kinds):
    contents = png(MASKS[mask], kinds, pieces=2)
    np.testing.assert_array_equal(decode_mask(contents, fast=False), MASKS[mask])  # by Pillow
    np.testing.assert_array_equal(decode_png(contents), MASKS[mask])


@pytest.mark.parametrize("mask", MASKS)
def test_files_of_pillow(mask):
    paletted = Image.fromarray(MASKS[mask], mode="P")
    paletted.putpalette([1, 2, 3] * 256)
    for image, options in ((MASKS[mask], {}), (paletted, {"transparency": 3})):
        contents = encoded(image, "PNG", **options)
        if MASKS[mask].max() > 15 or isinstance(image, np.ndarray):  # else of fewer bits
            np.testing.assert_array_equal(decode_png(contents), MASKS[mask])
        np.testing.assert_array_equal(decode_mask(contents), MASKS[mask])


GOOD = png(REGIONS, (4, 2))
DATA = GOOD.index(b"IDAT") + 4
OTHERS = {
    "colours": encoded(photo(9, 9), "PNG"),
    "16 bits": encoded(Image.fromarray(REGIONS.astype(np.uint16)), "PNG"),
    "another format": encoded(photo(9, 9)),
    "interlaced": GOOD[:28] + b"\1" + GOOD[29:],
    "animated": GOOD[:33] + chunk(b"acTL", bytes(8)) + GOOD[33:],
    "cut": GOOD[:-20],
    "cut within data": GOOD[: DATA + 9],
    "damaged": GOOD[: DATA + 9] + bytes(6) + GOOD[DATA + 15 :],
    "too few rows": GOOD[:20] + struct.pack(">I", 99) + GOOD[24:],
    "too many rows": GOOD[:20] + struct.pack(">I", 9) + GOOD[24:],
    "nothing": b"",
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_files_are_left_to_pillow(name):
    assert decode_png(OTHERS[name]) is None


def test_an_unknown_filter_is_left_to_pillow():
    rows = zlib.compress(b"\5" + bytes(4))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 1, 8, 0, 0, 0, 0))
    contents = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert decode_png(contents) is None
    with pytest.raises(UndecodableImageError):
        decode_mask(contents)


def test_limits():
    assert decode_png(GOOD, max_pixels=REGIONS.size) is not None
    assert decode_png(GOOD, max_pixels=REGIONS.size - 1) is None


def test_a_small_file_does_not_become_large():
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0))
    bomb = chunk(b"IDAT", zlib.compress(bytes(10**6)))
    assert decode_png(b"\x89PNG\r\n\x1a\n" + header + bomb + chunk(b"IEND", b"")) is None
