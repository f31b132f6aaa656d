import numpy as np
import pytest
from PIL import Image

from tests.data.photographs import encoded, photo
from vig_jax.data.preprocess.classification import ClassificationPreprocess
from vig_jax.data.preprocess.decode import decode
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
