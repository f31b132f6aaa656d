"""Decodes masks in PNG files with zlib and numba: Pillow's values in half the time."""

import functools
import inspect
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vig_jax.data.preprocess import limits, opencv

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_INDEXED = (0, 3)  # colour types of one channel: gray and palette


def decode_png(
    contents: bytes, max_pixels: int = limits.MAX_PIXELS
) -> UInt8[np.ndarray, "H W"] | None:
    """Decodes an ordinary PNG of one channel of 8 bits.

    Args:
        contents: of an image file.
        max_pixels: width times height; beyond it the file is left to Pillow's reader.

    Returns:
        Gray values or indices into the palette. None if Pillow must decode the file: numba is not
        installed, the format is another (several channels, other depths, interlaced, animated), or
        the file is damaged or enormous.
    """
    if opencv.why_not() is not None or (found := _compressed(contents, max_pixels)) is None:
        return None
    width, height, compressed = found
    size = height * (width + 1)  # each row begins with the number of its filter
    stream = zlib.decompressobj()
    try:
        rows = stream.decompress(compressed, size)
        if len(rows) != size or stream.decompress(stream.unconsumed_tail, 1) or not stream.eof:
            return None
    except zlib.error:
        return None
    filtered = np.frombuffer(rows, np.uint8).reshape(height, width + 1)
    if filtered[:, 0].max() > 4:
        return None
    return compiled()(filtered)


def _compressed(contents: bytes, max_pixels: int) -> tuple[int, int, bytes] | None:
    """Returns width, height and the compressed rows of a PNG that can be decoded here."""
    if not contents.startswith(_SIGNATURE + b"\0\0\0\rIHDR") or len(contents) < 33:
        return None
    width, height = (int.from_bytes(contents[i : i + 4]) for i in (16, 20))
    depth, colours, compression, filters, interlaced = contents[24:29]
    ordinary = depth == 8 and colours in _INDEXED and not (compression or filters or interlaced)
    if not ordinary or not 0 < width * height <= max_pixels:
        return None
    parts, position, kind = [], len(_SIGNATURE), b""
    while kind != b"IEND":
        length = int.from_bytes(contents[position : position + 4])
        kind, start = contents[position + 4 : position + 8], position + 8
        position = start + length + 4
        if position > len(contents) or kind == b"acTL":
            return None
        if kind == b"IDAT":
            parts.append(contents[start : start + length])
    return width, height, b"".join(parts)


@functools.cache
def compiled() -> Any:
    """Compiles the kernel that undoes the filters of rows, uint8 [H, 1 + W], to pixels [H, W]."""
    import numba

    rows = numba.types.Array(numba.uint8, 2, "C", readonly=True)
    signature = numba.uint8[:, ::1](rows)
    function = inspect.unwrap(_unfiltered)  # without the checks that tests add
    try:
        return numba.njit(signature, cache=True, nogil=True)(function)
    except RuntimeError:  # no folder for a cache
        return numba.njit(signature, nogil=True)(function)


def _unfiltered(rows):
    """Undoes the filters of PNG: none, left, up, average, Paeth."""
    height, width = rows.shape[0], rows.shape[1] - 1
    out = np.empty((height, width), np.uint8)
    above = np.zeros(width, np.uint8)
    for y in range(height):
        kind, line, into = rows[y, 0], rows[y, 1:], out[y]
        left: Any = 0
        corner: Any = 0  # the value above `left`
        if kind == 0:
            into[:] = line
        elif kind == 1:
            for x in range(width):
                left = (line[x] + left) & 255
                into[x] = left
        elif kind == 2:
            for x in range(width):
                into[x] = line[x] + above[x]
        elif kind == 3:
            for x in range(width):
                left = (line[x] + ((left + above[x]) >> 1)) & 255
                into[x] = left
        else:
            for x in range(width):
                up = np.int64(above[x])
                if line[x] == 0 and left == corner:  # inside of a region
                    left = up
                else:
                    to_left, to_up = abs(up - corner), abs(left - corner)
                    to_corner = abs(left + up - 2 * corner)
                    nearest = corner
                    if to_left <= to_up and to_left <= to_corner:
                        nearest = left
                    elif to_up <= to_corner:
                        nearest = up
                    left = (line[x] + nearest) & 255
                corner = up
                into[x] = left
        above = into
    return out
