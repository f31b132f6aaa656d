"""Pillow judges the pixels; the distributions are timm's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.data.photographs import photo
from vig_jax.augment.rand_augment import (
    RAND_AUGMENT_OPS,
    Op,
    apply_ops,
    draw_op,
    mean_color,
    rand_augment,
)
from vig_jax.augment.rand_augment.geometry import compose

FILL = (124, 116, 104)
KEY = jax.random.key(0)
GEOMETRIC = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}
BATCH = 40  # every test has this many images, so that apply_ops is compiled once

apply_ops = jax.jit(functools.partial(apply_ops, fill=FILL))


def pillow(name, argument, image):
    """The operation by Pillow's own functions."""
    whole = int(argument)
    enhancers = {
        "ColorIncreasing": ImageEnhance.Color,
        "ContrastIncreasing": ImageEnhance.Contrast,
        "BrightnessIncreasing": ImageEnhance.Brightness,
        "SharpnessIncreasing": ImageEnhance.Sharpness,
    }
    matrices = {
        "ShearX": (1, argument, 0, 0, 1, 0),
        "ShearY": (1, 0, 0, argument, 1, 0),
        "TranslateXRel": (1, 0, argument, 0, 1, 0),
        "TranslateYRel": (1, 0, 0, 0, 1, argument),
    }
    bicubic = Image.Resampling.BICUBIC
    if name in enhancers:
        return enhancers[name](image).enhance(argument)
    if name in matrices:
        affine = Image.Transform.AFFINE
        return image.transform(image.size, affine, matrices[name], bicubic, fillcolor=FILL)
    if name == "Rotate":
        return image.rotate(argument, bicubic, fillcolor=FILL)
    if name == "PosterizeIncreasing":
        return image.point([value & ~(2 ** (8 - whole) - 1) for value in range(256)] * 3)
    if name == "SolarizeAdd":
        return image.point([min(255, v + whole) if v < 128 else v for v in range(256)] * 3)
    if name == "SolarizeIncreasing":
        return ImageOps.solarize(image, whole)
    simple = {
        "AutoContrast": ImageOps.autocontrast,
        "Equalize": ImageOps.equalize,
        "Invert": ImageOps.invert,
    }
    return simple[name](image)


def arguments(name):
    strengths = (1.0, -0.9, 0.37, -0.05)
    return {
        "Rotate": [30 * s for s in strengths],
        "PosterizeIncreasing": [0, 1, 2, 4],
        "SolarizeIncreasing": [0, 26, 100, 256],
        "SolarizeAdd": [0, 50, 99, 110],
        "ShearX": [0.3 * s for s in strengths],
        "ShearY": [0.3 * s for s in strengths],
        "TranslateXRel": [0.45 * 48 * s for s in strengths],
        "TranslateYRel": [0.45 * 61 * s for s in strengths],
        "AutoContrast": [0],
        "Equalize": [0],
        "Invert": [0],
    }.get(name, [1 + 0.9 * s for s in strengths])


def assert_pixels_are_pillows(codes, arguments, images):
    """Applies one operation to each image; returns the fraction of equal values."""
    ops = Op(jnp.asarray(codes), jnp.asarray(arguments, jnp.float32))
    ours = np.asarray(apply_ops(ops, images)).astype(int)
    names = [*RAND_AUGMENT_OPS, "Identity"]
    for row, (code, argument) in enumerate(zip(codes, np.float32(arguments), strict=True)):
        image, name = Image.fromarray(images[row]), names[code]
        theirs = image if name == "Identity" else pillow(name, float(argument), image)
        difference = ours[row] - np.asarray(theirs)
        assert np.abs(difference).max() <= (name in GEOMETRIC), f"row {row}: {name} {argument}"
        ours[row] = difference
    return np.mean(ours == 0)


@pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
def test_pixels_are_pillows(name):
    photos = [photo(48, 61, seed) for seed in range(3)]
    kinds = [*photos, photos[0] // 3 + 20, np.full((61, 48, 3), 77, np.uint8)]
    images = np.resize(np.stack(kinds), (BATCH, 61, 48, 3))
    strengths = np.resize(np.repeat(arguments(name), len(kinds)), BATCH)
    codes = np.full(BATCH, RAND_AUGMENT_OPS.index(name))
    assert assert_pixels_are_pillows(codes, strengths, images) >= 0.998


@pytest.mark.parametrize("codes", [range(16), [3], [1], [10, 1, 15], [15]])
def test_every_image_of_a_batch_gets_its_operation(codes):
    """The images that share an operation need all rounds, one, or none."""
    images = np.stack([photo(48, 61, seed) for seed in range(BATCH)])
    codes = np.resize(np.asarray(codes), BATCH)
    strengths = [[*map(arguments, RAND_AUGMENT_OPS), [0]][code][0] for code in codes]
    assert_pixels_are_pillows(codes, strengths, images)


def test_autocontrast_rounds_as_pillow_does():
    """Covers every third span of values; for some, float64 falls short of an integer."""
    code = RAND_AUGMENT_OPS.index("AutoContrast")
    for low in np.resize(np.arange(0, 250, 3), (3, BATCH)):
        images = np.stack([np.linspace(v, 255 - v // 2, 61 * 48) for v in low])
        images = np.repeat(images.reshape(-1, 61, 48, 1), 3, axis=-1).astype(np.uint8)
        assert_pixels_are_pillows(np.full(BATCH, code), np.zeros(BATCH), images)


def test_distribution_of_the_operations():
    draw = functools.partial(draw_op, magnitude=9.0, magnitude_std=0.5, height=100, width=200)
    op = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 30_000))
    code, argument = np.asarray(op.code), np.asarray(op.argument)
    applied = code < len(RAND_AUGMENT_OPS)
    assert np.mean(applied) == pytest.approx(0.5, abs=0.01)
    counts = np.bincount(code[applied]) / np.sum(applied)
    np.testing.assert_allclose(counts, 1 / 15, atol=0.006)
    of = {name: argument[code == i] for i, name in enumerate(RAND_AUGMENT_OPS)}
    for name, most in {
        "Rotate": 30,
        "ShearX": 0.3,
        "TranslateXRel": 90,
        "TranslateYRel": 45,
    }.items():
        assert np.abs(of[name]).max() <= most
        assert np.mean(of[name] > 0) == pytest.approx(0.5, abs=0.04)
        assert np.mean(np.abs(of[name])) == pytest.approx(0.897 * most, rel=0.01)
    assert np.mean(np.abs(of["ColorIncreasing"] - 1)) == pytest.approx(0.897 * 0.9, rel=0.01)
    bits = of["PosterizeIncreasing"]
    # One bit, unless the magnitude is clipped to 10 (no bit left) or is below 7.5.
    assert np.mean(bits == 1) == pytest.approx(0.975, abs=0.012)
    assert np.mean(bits == 0) == pytest.approx(0.023, abs=0.012)
    assert np.mean(of["SolarizeIncreasing"]) == pytest.approx(256 - 0.897 * 256, abs=2)
    assert np.mean(of["SolarizeAdd"]) == pytest.approx(0.897 * 110, abs=1.5)


def run(images, layers):
    settings = {"layers": layers, "magnitude": 9.0, "magnitude_std": 0.5, "fill": (0, 0, 0)}
    return jax.jit(functools.partial(rand_augment, **settings))(KEY, images)


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.slow)])
def augmented(request):
    """A white square on black, and what becomes of it: layers, images, moved images, matrices."""
    images = np.zeros((256, 32, 32, 3), np.uint8)
    images[:, 18:23, 8:13] = 255  # its centre is x = 10.5, y = 20.5
    return request.param, images, *map(np.asarray, run(images, request.param))


def test_matrices_follow_the_pixels(augmented):
    _, _, moved, matrices = augmented
    y, x = np.mgrid[:32, :32] + 0.5
    followed = 0
    for image, matrix in zip(moved.astype(float), matrices, strict=True):
        weight = image.sum(axis=-1)
        linear, shift = matrix[:, :2], matrix[:, 2]
        expected = np.linalg.solve(linear, (10.5, 20.5) - shift)
        visible = (expected > 4).all() and (expected < 28).all()
        bright = np.sum(weight > weight.max() / 2)
        if np.median(weight) or not 15 < bright < 40 or not visible:
            continue  # recoloured beyond recognition, or moved out of the image
        centre = np.array([np.sum(weight * x), np.sum(weight * y)]) / np.sum(weight)
        np.testing.assert_allclose(centre, expected, atol=0.35)
        followed += not np.array_equal(matrix, np.eye(2, 3))
    assert followed > 20


def test_share_of_the_images_that_are_moved(augmented):
    layers, _, _, matrices = augmented
    # A layer applies an operation with probability 1/2, one of 15, of which 5 are geometric.
    still = np.mean([np.array_equal(matrix, np.eye(2, 3)) for matrix in matrices])
    assert still == pytest.approx((1 - 0.5 * 5 / 15) ** layers, abs=0.08)


@pytest.mark.slow
def test_the_draws_of_a_row_do_not_depend_on_the_batch(augmented):
    layers, images, moved, matrices = augmented
    first = run(images[:3], layers)
    np.testing.assert_array_equal(first[0], moved[:3])
    np.testing.assert_array_equal(first[1], matrices[:3])


def test_matrices_are_composed():
    quarter = jnp.array([[0.0, -1.0, 8.0], [1.0, 0.0, 0.0]])
    shift = jnp.array([[1.0, 0.0, 2.0], [0.0, 1.0, 3.0]])
    both = compose(quarter, shift)  # the image is turned first, then shifted
    point = np.array([5.0, 7.0, 1.0])
    np.testing.assert_allclose(both @ point, quarter @ np.append(shift @ point, 1.0))


def test_fill_colour():
    assert mean_color((0.485, 0.456, 0.406)) == FILL
