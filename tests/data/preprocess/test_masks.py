import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from tests import golden_seg
from tests.data.photographs import encoded
from vig_jax.data.preprocess.masks import (
    IGNORED,
    NO_CLASS,
    check_labels,
    decode_mask,
    label_lookup,
    zero_is_no_class,
)
from vig_jax.errors import ConfigError, DataSetError, UndecodableImageError

LABELS = np.arange(24, dtype=np.uint8).reshape(4, 6) % 7


def gray_png(labels: np.ndarray, bits: int) -> bytes:
    """A PNG of 1, 2 or 4 bits per pixel, which Pillow does not write."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b""
    for row in labels:
        digits = "".join(f"{label:0{bits}b}" for label in row)
        digits += "0" * (-len(digits) % 8)
        rows += b"\0" + int(digits, 2).to_bytes(len(digits) // 8, "big")
    header = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], bits, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*parts) for parts in chunks)


def with_palette(labels):
    image = Image.fromarray(labels, mode="P")
    image.putpalette([200, 100, 0] * 256)
    return encoded(image, "PNG")


@pytest.mark.parametrize(
    "contents",
    [
        LABELS,
        encoded(Image.fromarray(LABELS), "PNG"),
        encoded(Image.fromarray(LABELS.astype(np.uint16)), "PNG"),
        with_palette(LABELS),
        gray_png(LABELS, 4),
    ],
    ids=["array", "gray", "16 bits", "palette", "4 bits"],
)
def test_labels_are_those_of_the_file(contents):
    labels = decode_mask(contents)
    assert labels.dtype == np.uint8
    np.testing.assert_array_equal(labels, LABELS)


@pytest.mark.parametrize("bits", [1, 2])
def test_few_bits(bits):
    labels = LABELS % 2**bits
    np.testing.assert_array_equal(decode_mask(gray_png(labels, bits)), labels)


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (
            encoded(Image.fromarray(LABELS).convert("RGB"), "PNG"),
            "convert each colour to its index",
        ),
        (encoded(Image.fromarray(LABELS).convert("LA"), "PNG"), "has one channel"),
        (encoded(Image.fromarray(LABELS), "JPEG"), "must be a PNG file; this is JPEG"),
        (encoded(Image.fromarray(LABELS.astype(np.uint16) + 300), "PNG"), "has the label 306"),
        (encoded(Image.fromarray(LABELS), "PNG")[:-30], "truncated|broken"),
        (b"", "empty"),
        (b"no image at all", "not a JPEG"),
    ],
)
def test_other_files_are_refused(contents, message):
    with pytest.raises(UndecodableImageError, match=message):
        decode_mask(contents)


def test_limits_and_arrays():
    with pytest.raises(UndecodableImageError, match="limit max_image_pixels=20"):
        decode_mask(encoded(Image.fromarray(LABELS), "PNG"), max_pixels=20)
    with pytest.raises(ValueError, match=r"must be uint8 \[H, W\]; this is int64 \(4, 6\)"):
        decode_mask(LABELS.astype(np.int64))


def test_zero_is_reduced_as_in_mmsegmentation():
    arrays = golden_seg.load("geometry").arrays
    lookup = label_lookup({"class_names": ["a"] * 150}, True)
    np.testing.assert_array_equal(lookup[arrays["zero/raw"]], arrays["zero/reduced"])
    assert lookup[[0, 1, 150, 151, 254, 255]].tolist() == [255, 0, 149, NO_CLASS, NO_CLASS, 255]


def test_raw_labels_are_those_after_zero_is_reduced():
    metadata = {"class_names": ["road", "sky"], "raw_labels": [7, 3], "ignored_labels": [0, 5]}
    plain, reduced = (label_lookup(metadata, reduce) for reduce in (False, True))
    assert plain[[0, 3, 5, 7, 8, 255]].tolist() == [IGNORED, 1, IGNORED, 0, NO_CLASS, IGNORED]
    assert reduced[[0, 1, 4, 6, 8, 7, 255]].tolist() == [255, 255, 1, 255, 0, NO_CLASS, 255]


def test_names_and_labels_must_fit():
    names = ["a", "b", "c"]
    with pytest.raises(ConfigError, match="the label 3, but there are 3 class names: set reduce"):
        label_lookup({"class_names": names, "largest_label": 3}, False)
    seen = {"class_names": names, "seen_label": 3}
    with pytest.raises(ConfigError, match="the label 3, but there are 3"):
        label_lookup(seen, False)
    assert zero_is_no_class(seen)
    assert label_lookup(seen, True)[3] == 2
    assert not zero_is_no_class({"class_names": names, "largest_label": 2})
    with pytest.raises(ConfigError, match="write the names of labels 1, 2"):
        label_lookup({"class_names": names, "largest_label": 2}, True)
    for largest, reduce in ((2, False), (3, True), (255, False)):
        label_lookup({"class_names": names, "largest_label": largest}, reduce)
    with pytest.raises(DataSetError, match="raw labels 1, 1, 2; each class must have its own"):
        label_lookup({"class_names": names, "raw_labels": [1, 1, 2]}, False)
    with pytest.raises(DataSetError, match="255 classes; a mask of 8 bits has 1 to 254"):
        label_lookup({"class_names": ["a"] * 255}, False)


def test_every_pixel_is_checked():
    lookup = label_lookup({"class_names": ["a"] * 5}, False)
    check_labels(LABELS % 5, lookup)
    with pytest.raises(
        UndecodableImageError, match=r"the label 5, 6, which has no class .* 0 to 4"
    ):
        check_labels(LABELS, lookup)
    with pytest.raises(UndecodableImageError, match="all pixels of the mask are ignored"):
        check_labels(np.full((3, 3), 255, np.uint8), lookup)
