"""Pillow is the judge of the pixels; the laws are timm's."""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from tests.data.pictures import photo
from vig_jax.augment import rand_augment as augment
from vig_jax.augment.rand_augment import (
    RAND_AUGMENT_OPS,
    Op,
    color_jitter,
    draw_op,
    erase,
    erase_box,
    mean_color,
    rand_augment,
)

FILL = (124, 116, 104)
KEY = jax.random.key(0)
MOVES = {"Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel"}


def pictures():
    """Of full and of less contrast, 61 x 48 pixels."""
    images = [photo(48, 61, seed) for seed in range(3)]
    return np.stack([*images, images[0] // 3 + 20])


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


@pytest.fixture(scope="module")
def apply_op():
    one = functools.partial(augment.apply_op, fill=FILL)
    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


@pytest.fixture(scope="module")
def apply_ops():
    return jax.jit(functools.partial(augment._apply_ops, fill=FILL))


@pytest.mark.parametrize("name", RAND_AUGMENT_OPS)
def test_pixels_are_pillows(name, apply_op):
    flat = np.full((1, 61, 48, 3), 77, np.uint8)
    images = np.concatenate([pictures(), flat])
    equal = []
    for argument in np.float32(arguments(name)):
        op = Op(jnp.asarray(RAND_AUGMENT_OPS.index(name)), jnp.asarray(argument))
        mine = np.asarray(apply_op(op, images))
        theirs = [pillow(name, float(argument), Image.fromarray(image)) for image in images]
        difference = mine.astype(int) - np.stack([np.asarray(image) for image in theirs])
        assert np.abs(difference).max() <= (1 if name in MOVES else 0)
        equal.append(np.mean(difference == 0))
    assert np.mean(equal) >= 0.998


@pytest.mark.parametrize("codes", [range(16), [3], [1], [10, 1, 15], [15]])
def test_every_image_of_a_batch_gets_its_own_operation(codes, apply_op, apply_ops):
    """More images than are worked on at once, in any mixture: all, several turns, none."""
    images = np.stack([photo(48, 61, seed) for seed in range(37)])
    code = np.resize(np.asarray(codes), 37)
    argument = np.array([[*map(arguments, RAND_AUGMENT_OPS), [0]][c][0] for c in code], np.float32)
    mine = apply_ops(Op(jnp.asarray(code), jnp.asarray(argument)), images)
    for row in range(37):
        op = Op(jnp.asarray(code[row]), jnp.asarray(argument[row]))
        alone = apply_op(op, images[row : row + 1])[0]
        np.testing.assert_array_equal(mine[row], alone, err_msg=f"row {row}, code {code[row]}")


def test_autocontrast_rounds_as_pillow_does(apply_op):
    """Every span of values, among them those where float64 falls short of an integer."""
    low = np.arange(0, 250, 3)
    images = np.stack([np.linspace(v, 255 - v // 2, 61 * 48) for v in low])
    images = np.repeat(images.reshape(-1, 61, 48, 1), 3, axis=-1).astype(np.uint8)
    op = Op(jnp.asarray(RAND_AUGMENT_OPS.index("AutoContrast")), jnp.zeros(()))
    theirs = [np.asarray(ImageOps.autocontrast(Image.fromarray(image))) for image in images]
    np.testing.assert_array_equal(apply_op(op, images), theirs)


def test_law_of_the_operations():
    law = functools.partial(draw_op, magnitude=9.0, magnitude_std=0.5, height=100, width=200)
    op = jax.jit(jax.vmap(law))(jax.random.split(KEY, 60_000))
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
    # One bit unless the magnitude is clipped to 10 (none left) or below 7.5.
    assert np.mean(bits == 1) == pytest.approx(0.975, abs=0.012)
    assert np.mean(bits == 0) == pytest.approx(0.023, abs=0.012)
    assert np.mean(of["SolarizeIncreasing"]) == pytest.approx(256 - 0.897 * 256, abs=2)
    assert np.mean(of["SolarizeAdd"]) == pytest.approx(0.897 * 110, abs=1.5)


@pytest.mark.slow
def test_a_quarter_of_the_images_stays():
    images = jnp.asarray(np.repeat(pictures()[1:2], 256, axis=0)[:, :16, :16])
    run = functools.partial(rand_augment, layers=2, magnitude=9.0, magnitude_std=0.5, fill=FILL)
    out = jax.jit(run)(KEY, images)
    chex.assert_shape(out, images.shape)
    assert out.dtype == jnp.uint8
    same = np.mean(np.all(np.asarray(out == images), axis=(1, 2, 3)))
    assert same == pytest.approx(0.25, abs=0.09)
    first = jax.jit(run)(KEY, images[:3])
    np.testing.assert_array_equal(first, out[:3])  # a row's draws do not depend on the batch


def test_color_jitter():
    images = jnp.asarray(pictures())
    out = jax.jit(functools.partial(color_jitter, strength=0.4))(KEY, images)
    assert out.dtype == jnp.uint8
    assert np.all(np.any(np.asarray(out != images), axis=(1, 2, 3)))
    same = jax.jit(functools.partial(color_jitter, strength=0.0))(KEY, images)
    np.testing.assert_array_equal(same, images)


def test_law_of_the_erased_boxes():
    box = jax.jit(jax.vmap(lambda key: erase_box(key, 224, 224)))
    top, bottom, left, right = map(np.asarray, box(jax.random.split(KEY, 20_000)))
    height, width = bottom - top, right - left
    area = height * width / 224**2
    assert np.all((top >= 0) & (bottom <= 224) & (left >= 0) & (right <= 224))
    assert area.max() < 0.34
    assert area[area > 0].min() > 0.019
    assert np.mean(area[area > 0]) == pytest.approx(0.176, abs=0.002)
    aspect = np.log(height[area > 0] / width[area > 0])
    assert np.abs(aspect).max() < math.log(1 / 0.3) + 0.05
    assert np.mean(aspect) == pytest.approx(0, abs=0.02)
    # Corners are uniform in what the box leaves free.
    assert np.mean((top + 0.5) / (224 - height + 1)) == pytest.approx(0.5, abs=0.01)


def test_erased_pixels_are_normal():
    images = jnp.full((400, 24, 24, 3), 9.0)
    out = np.asarray(jax.jit(functools.partial(erase, probability=0.25))(KEY, images))
    changed = np.any(out != 9, axis=(1, 2, 3))
    assert np.mean(changed) == pytest.approx(0.25, abs=0.07)
    noise = out[out != 9]
    assert np.mean(noise) == pytest.approx(0, abs=0.02)
    assert np.std(noise) == pytest.approx(1, abs=0.02)
    assert np.unique(noise).size > 0.99 * noise.size  # each pixel and channel has its own
    none = jax.jit(functools.partial(erase, probability=0.0))(KEY, images)
    np.testing.assert_array_equal(none, images)


def test_fill_colour():
    assert mean_color((0.485, 0.456, 0.406)) == FILL
