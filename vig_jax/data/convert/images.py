"""Converts one image: checks it and, if required, resizes or re-encodes it."""

import dataclasses
import io
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from vig_jax.data.convert.options import Options
from vig_jax.data.convert.writers import RAW, EncodedImage
from vig_jax.data.dataset import ClassificationDataset
from vig_jax.data.preprocess.decode import damage_of, decode, read_header
from vig_jax.errors import UndecodableImageError

SAMPLE = 64
"""The number of images from which the mean size is estimated."""

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "BMP": "bmp", "WEBP": "webp", "GIF": "gif"}
_EXTENSIONS |= {"TIFF": "tif", "PPM": "ppm"}
_OF_NETPBM = {"1": "pbm", "L": "pgm", "I": "pgm"}  # by Pillow's mode, for its format PPM


def convert_image(dataset: ClassificationDataset, index: int, options: Options) -> EncodedImage:
    """Reads, checks and, if required, resizes or re-encodes one image.

    Raises:
        UndecodableImageError: it cannot be decoded.
        OSError: it cannot be read.
    """
    example = dataset[index]
    image = example["image"]
    if isinstance(image, np.ndarray):
        image = _encode(decode(image), "PNG")
    header = read_header(image, options.max_image_pixels)
    damage = damage_of(image) if options.decode else None
    if damage and options.leave_out_damaged:
        raise UndecodableImageError(f"{damage} (--leave-out-damaged)")
    size = header.width, header.height
    extension = _EXTENSIONS.get(header.format, header.format.lower())
    if header.format == "PPM":
        extension = _OF_NETPBM.get(header.mode, extension)
    reduce = 0 < options.resize_short < min(size)
    if reduce or options.raw or (options.reencode_progressive and header.progressive):
        decoded = decode(image, options.max_image_pixels)
        if reduce:
            size = _reduced(size, options.resize_short)
            decoded = decoded.resize(size, Image.Resampling.BICUBIC)
        if options.raw:
            image, extension = decoded.tobytes(), RAW
        else:
            settings = {"quality": options.quality, "subsampling": options.subsampling}
            image, extension = _encode(decoded, "JPEG", **settings), "jpg"
    elif options.decode:
        decode(image, options.max_image_pixels)
    key = dataset.name_of(index)
    return EncodedImage(image, example["label"], index, key, extension, *size, damage)


def mean_bytes(
    dataset: ClassificationDataset, order: Int[np.ndarray, "n"], options: Options
) -> float:
    """Estimates the mean size of the converted images from a sample.

    Args:
        dataset: the images.
        order: positions of the images to convert.
        options: of the conversion.

    Returns:
        Bytes; 1 if no image of the sample can be read.
    """
    unchecked = dataclasses.replace(options, decode=False)
    sizes = []
    for index in order[:: max(1, len(order) // SAMPLE)].tolist():
        try:
            sizes.append(len(convert_image(dataset, index, unchecked).contents))
        except (UndecodableImageError, OSError):
            continue
    return float(np.mean(sizes)) if sizes else 1.0


def _reduced(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Returns the size whose shorter side is `short`."""
    width, height = size
    scale = short / min(size)
    return (
        short if width <= height else round(width * scale),
        short if height <= width else round(height * scale),
    )


def _encode(image: Image.Image, format: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **settings)
    return buffer.getvalue()
