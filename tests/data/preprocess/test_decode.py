import struct

import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import encoded, photo
from vig_jax.data.convert import Options, convert
from vig_jax.data.inspection import inspect
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.data.preprocess.decode import decode, load, read_header
from vig_jax.data.preprocess.limits import _has_one_scan
from vig_jax.errors import DataSetError, UndecodableImageError

PHOTO = photo(60, 45)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_decode_keeps_the_pixels_of_lossless_files():
    for kind in ("PNG", "BMP", "TIFF", "PPM"):
        np.testing.assert_array_equal(np.asarray(decode(encoded(PHOTO, kind))), PHOTO)
    np.testing.assert_array_equal(np.asarray(decode(encoded(PHOTO, "WEBP", lossless=True))), PHOTO)
    np.testing.assert_array_equal(np.asarray(decode(PHOTO)), PHOTO)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_decode_jpeg(options):
    decoded = np.asarray(decode(encoded(PHOTO, "JPEG", quality=95, **options))).astype(int)
    assert np.abs(decoded - PHOTO).mean() < 4


@pytest.mark.parametrize("mode", ["L", "1", "CMYK", "YCbCr", "RGBA", "LA", "P"])
def test_decode_other_modes_as_pillow_converts_them(mode):
    image = Image.fromarray(PHOTO).convert(mode)
    kind = "JPEG" if mode in ("CMYK", "YCbCr") else "PNG"
    decoded = decode(encoded(image, kind))
    assert decoded.mode == "RGB"
    if kind == "PNG":
        np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))
    else:
        assert np.abs(np.asarray(decoded).astype(int) - PHOTO).mean() < 8


def test_decode_palette_with_transparency_without_a_warning():
    image = Image.fromarray(PHOTO).convert("P")
    image.info["transparency"] = bytes(range(256))
    decoded = decode(encoded(image, "PNG", transparency=bytes(range(256))))
    del image.info["transparency"]
    np.testing.assert_array_equal(np.asarray(decoded), np.asarray(image.convert("RGB")))


def test_decode_sixteen_bit_gray_keeps_the_upper_half():
    gray = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)
    decoded = np.asarray(decode(encoded(Image.fromarray(gray), "PNG")))
    np.testing.assert_array_equal(decoded[..., 1], gray >> 8)


def test_decode_takes_the_first_frame():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    gif = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(gif).getpixel((0, 0)) == (255, 0, 0)


def test_decode_ignores_exif_rotation():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert decode(encoded(PHOTO, "JPEG", exif=exif)).size == (60, 45)


def test_decode_goes_by_content_not_by_name():
    assert decode(encoded(PHOTO, "PNG")).size == (60, 45)  # whatever the file was called


@pytest.mark.parametrize(
    "contents",
    [
        b"",
        b"\0" * 100,
        b"<html>404</html>",
        encoded(PHOTO)[:400],
        encoded(PHOTO)[:-300],
        encoded(PHOTO, "PNG")[:-2000],
        encoded(PHOTO, "PNG")[:60],
        encoded(PHOTO, "GIF")[:300],
        encoded(PHOTO, "BMP")[:1000],
        encoded(PHOTO, "EPS"),
    ],
    ids=["empty", "zeros", "html", "jpeg header", "jpeg", "png", "png header", "gif", "bmp", "eps"],
)
def test_undecodable_raises(contents):
    with pytest.raises(UndecodableImageError):
        decode(contents)


def test_arrays_are_checked():
    for array in (PHOTO.astype(np.float32), PHOTO[..., 0], PHOTO[..., :2]):
        with pytest.raises(ValueError, match=r"must be uint8 \[H, W, 3\]"):
            decode(array)


def test_a_label_of_more_than_32_bits_is_refused(make_data):
    preprocess = ClassificationPreprocess(make_data(), train=False)
    for label in (2**32, np.int64(2**32 + 1), -(2**31) - 1):
        with pytest.raises(DataSetError, match=f"a label is {label}"):
            preprocess({"image": PHOTO, "label": label}, None)


GRAY_16 = (np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64)


def _pgm(values, maximum):
    return b"P5 64 64 %d\n" % maximum + values.astype(">u2").tobytes()


def _tiff_of_twelve_bits():
    """Pillow writes no such file: four bits are dropped from one of sixteen bits."""
    pairs = (GRAY_16.reshape(-1, 2) >> 4).astype(np.uint32)
    packed = (pairs[:, 0] << 12 | pairs[:, 1])[:, None] >> np.array([16, 8, 0]) & 255
    pixels = packed.astype(np.uint8).tobytes()
    tags = [(256, 64), (257, 64), (258, 12), (259, 1), (262, 1), (273, 8 + 2 + 8 * 12 + 4)]
    tags += [(278, 64), (279, len(pixels))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + b"\0" * 4 + pixels


@pytest.mark.parametrize(
    "contents",
    [
        _pgm(GRAY_16, 65535),
        encoded(Image.fromarray(GRAY_16), "TIFF"),
        encoded(Image.fromarray(GRAY_16.astype(">u2")), "TIFF"),
        _tiff_of_twelve_bits(),
    ],
    ids=["PGM", "TIFF", "TIFF, big endian", "TIFF, 12 bits"],
)
def test_gray_of_more_than_eight_bits_is_scaled(contents):
    np.testing.assert_array_equal(np.asarray(decode(contents))[..., 0], GRAY_16 >> 8)


def test_gray_of_ten_bits_in_a_pgm_is_scaled():
    decoded = np.asarray(decode(_pgm(GRAY_16 >> 6, 1023)))[..., 0]
    assert np.abs(decoded.astype(int) - (GRAY_16 >> 8)).max() <= 1


@pytest.mark.parametrize(
    ("contents", "gray"),
    [
        (b"P1 3 2  0 1 0  1 1 0", [255, 0, 255, 0, 0, 255]),  # one is black
        (b"P4 3 2 " + bytes([0b01000000, 0b11000000]), [255, 0, 255, 0, 0, 255]),
        (b"P2 3 2 255  0 1 2  100 254 255", [0, 1, 2, 100, 254, 255]),
        (b"P5 3 2 255 " + bytes([0, 1, 2, 100, 254, 255]), [0, 1, 2, 100, 254, 255]),
        (b"P5 3 2 15 " + bytes([0, 1, 2, 3, 14, 15]), [0, 17, 34, 51, 238, 255]),
        (b"P2 3 2 65535  0 257 514  255 65534 65535", [0, 1, 2, 0, 255, 255]),
        (
            b"P6 3 2 65535 "
            + np.repeat([0, 257, 514, 25700, 65278, 65535], 3).astype(">u2").tobytes(),
            [0, 1, 2, 100, 254, 255],
        ),
    ],
)
def test_white_is_white_in_every_kind_of_netpbm(contents, gray):
    decoded = np.asarray(decode(contents))
    np.testing.assert_array_equal(decoded, np.reshape(gray, (2, 3, 1)).repeat(3, axis=2))


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_pixels_without_a_defined_white_are_left_out_with_the_reason(dtype):
    contents = encoded(Image.fromarray(GRAY_16.astype(dtype)), "TIFF")
    with pytest.raises(UndecodableImageError, match="no defined white: save the image with 8"):
        decode(contents)


def _webp(fourcc, header):
    chunk = fourcc + struct.pack("<I", len(header)) + header
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


def _jpeg_with_sides(image, width, height):
    contents = bytearray(image)
    start = max(contents.find(b"\xff\xc0"), contents.find(b"\xff\xc2"))
    contents[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(contents)


PROGRESSIVE = encoded(PHOTO, progressive=True)
_LAST_SCAN = PROGRESSIVE[PROGRESSIVE.rfind(b"\xff\xda") : -2]
BOMBS = {
    "WebP, extended": _webp(b"VP8X", b"\0" * 4 + b"\xfe\x3f\0" * 2 + b"\0" * 4),
    "WebP, lossless": _webp(b"VP8L", b"\x2f" + b"\xff" * 3 + b"\x0f" + b"\0" * 5),
    "WebP, lossy": _webp(b"VP8 ", b"\0" * 3 + b"\x9d\x01\x2a" + b"\xff\x3f" * 2),
    "JPEG": _jpeg_with_sides(encoded(PHOTO), 9_000, 9_000),
    "JPEG of many scans": PROGRESSIVE[:-2] + _LAST_SCAN * 100 + b"\xff\xd9",
    "JPEG of many passes": _jpeg_with_sides(
        PROGRESSIVE[:-2] + _LAST_SCAN * 60 + b"\xff\xd9", 8_000, 8_000
    ),
}


@pytest.mark.parametrize("kind", BOMBS)
@pytest.mark.parametrize("fast", [True, False])
def test_a_bomb_is_refused_by_its_header(kind, fast, make_data, monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("was decoded"))
    data = make_data(resize="auto" if fast else "pillow", max_image_pixels=2**26)
    for refuse in (decode, read_header, lambda image: load(image, data)):
        with pytest.raises(UndecodableImageError, match=r"pixels, more than|scans"):
            refuse(BOMBS[kind])


@pytest.mark.parametrize(
    ("options", "one"), [({}, True), ({"progressive": True}, False), ({"mode": "L"}, True)]
)
def test_scans_are_counted_only_where_there_may_be_many(options, one):
    mode = options.pop("mode", "RGB")
    contents = encoded(Image.fromarray(PHOTO).convert(mode), **options)
    assert _has_one_scan(contents) == one
    for length in (0, 2, 20, 200, len(contents) // 2):
        _has_one_scan(contents[:length])  # whatever the result: no error


def test_the_limit_of_pixels_is_a_setting(make_data):
    assert load(encoded(PHOTO), make_data(max_image_pixels=60 * 45)) is not None
    with pytest.raises(UndecodableImageError, match=r"60 x 45 pixels, .*max_image_pixels=2699"):
        load(encoded(PHOTO), make_data(max_image_pixels=60 * 45 - 1))


def test_inspect_and_convert_have_the_limit_too(opened, folder, tmp_path):
    largest = Image.fromarray(photo(100, 90))
    largest.save(folder / "train" / "cat" / "large.png")
    source = opened("image_folder", folder)
    about = inspect(source, max_pixels=100 * 90 - 1)
    assert [bad["path"] for bad in about["undecodable"]] == ["train/cat/large.png"]
    assert not inspect(source, max_pixels=100 * 90)["undecodable"]
    options = Options(max_image_pixels=100 * 90 - 1)
    info = convert({"train": source}, tmp_path / "out", options, max_errors=1)
    assert info["splits"]["train"]["left_out"] == 1
