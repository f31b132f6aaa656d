"""OpenCV's pixels and mmsegmentation's order: `tests/golden_seg` holds what they made."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_seg
from tests.data.photographs import photo
from vig_jax.augment.photometric import (
    Distortion,
    distort,
    draw_distortion,
    hsv_from_rgb,
    photometric_distortion,
    rgb_from_hsv,
)
from vig_jax.layers.pixels import IMAGENET_MEAN, IMAGENET_STD, normalise_parts


def draws(case):
    """Returns the numbers of a golden case; null stands for an operation that was not drawn."""
    saturation, hue = case["saturation"], case["hue"]
    return Distortion(
        brightness=np.float32(case["brightness"] or 0),
        contrast=np.float32(1 if case["contrast"] is None else case["contrast"]),
        contrast_first=np.bool_(case["contrast_first"]),
        saturation=np.float32(1 if saturation is None else saturation),
        change_saturation=np.bool_(saturation is not None),
        hue=np.int32(hue or 0),
        change_hue=np.bool_(hue is not None),
    )


def in_order(numbers):
    """Returns the same from the drawn numbers in mmsegmentation's order."""
    queue = iter(numbers)

    def value():
        return next(queue) if next(queue) else None

    case = {"brightness": value(), "contrast_first": bool(next(queue)), "contrast": None}
    if case["contrast_first"]:
        case["contrast"] = value()
    case |= {"saturation": value(), "hue": value()}
    if not case["contrast_first"]:
        case["contrast"] = value()
    assert next(queue, None) is None
    return draws(case)


def stacked(distortions):
    return jax.tree.map(lambda *fields: jnp.stack(fields), *distortions)


def check(actual, expected, exact):
    """Hue and saturation depend on how float32 products round: a few values may differ."""
    difference = np.abs(np.asarray(actual).astype(int) - expected)
    assert np.mean(difference > 0) <= (0 if exact else 1e-3)
    assert difference.max() <= 2


def test_given_draws():
    golden = golden_seg.load("photometric")
    cases = golden.facts["cases"]
    image = jnp.asarray(golden.arrays["image_rgb"])
    many = jax.jit(jax.vmap(distort, in_axes=(None, 0, None)))
    results = many(image, stacked([draws(case) for case in cases.values()]), image.shape[1])
    for result, (name, case) in zip(results, cases.items(), strict=True):
        exact = case["saturation"] is None and case["hue"] is None
        check(result, golden.arrays[f"{name}_rgb"], exact)


def test_colours():
    arrays = golden_seg.load("photometric").arrays
    found = np.stack(hsv_from_rgb(jnp.asarray(arrays["colours_rgb"])), axis=-1)
    np.testing.assert_array_equal(found, arrays["colours_hsv"])
    hsv = [jnp.asarray(x) for x in arrays["hsv"].T]
    for rounded, name in ((False, "hsv_rgb"), (True, "hsv_rgb_narrow")):
        back = rgb_from_hsv(*hsv, jnp.full(hsv[0].shape, rounded))
        check(back, arrays[name], exact=False)


def test_the_pipeline_of_training():
    golden = golden_seg.load("pipeline")
    H, W = golden.facts["crop"]
    cases = golden.facts["cases"]
    sizes = np.array([case["shapes"]["RandomFlip"] for case in cases], np.int32)
    padded = np.full((2, len(cases), H, W, 3), 99, np.uint8)  # before and after
    for i, (h, w) in enumerate(sizes):
        for images, step in zip(padded, ("RandomFlip", "PhotoMetricDistortion"), strict=True):
            images[i, :h, :w] = golden.arrays[f"{i}/{step}/image_rgb"]
    numbers = [in_order(case["draws"]["PhotoMetricDistortion"]) for case in cases]
    results = jax.jit(jax.vmap(distort))(padded[0], stacked(numbers), sizes[:, 1])
    for i, (h, w) in enumerate(sizes):
        exact = not (numbers[i].change_saturation or numbers[i].change_hue)
        check(results[i, :h, :w], padded[1, i, :h, :w], exact)
    normalised = normalise_parts(
        jnp.asarray(padded[1]), jnp.asarray(sizes), IMAGENET_MEAN, IMAGENET_STD
    )
    for i in range(len(cases)):
        final = golden.arrays[f"{i}/final_image_hwc"]
        assert golden_seg.relative_error(normalised[i], final) < 1e-6


def test_padding_is_zero_after_normalising():
    arrays = golden_seg.load("geometry").arrays
    expected = arrays["pad/normalised_hwc"]
    height, width, _ = arrays["pad/image_rgb"].shape
    image = np.full(expected.shape, 7, np.uint8)
    image[:height, :width] = arrays["pad/image_rgb"]
    size = jnp.array([[height, width]], jnp.int32)
    found = normalise_parts(jnp.asarray(image[None]), size, IMAGENET_MEAN, IMAGENET_STD)
    assert golden_seg.relative_error(found[0], expected) < 1e-6


def test_distribution_of_the_draws():
    keys = jax.random.split(jax.random.key(0), 2000)
    found = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw_distortion))(keys))
    chances = {
        "brightness": found.brightness != 0,
        "contrast": found.contrast != 1,
        "first": found.contrast_first,
        "saturation": found.change_saturation,
        "hue": found.change_hue,
    }
    for name, drawn in chances.items():
        assert drawn.mean() == pytest.approx(0.5, abs=0.04), name
    assert np.abs(np.corrcoef(np.stack(list(chances.values())))[np.triu_indices(5, 1)]).max() < 0.1
    brightness = found.brightness[chances["brightness"]]
    for values, low, high in (
        (brightness, -32, 32),
        (found.contrast[chances["contrast"]], 0.5, 1.5),
        (found.saturation, 0.5, 1.5),
    ):
        share = (values - low) / (high - low)
        assert share.min() >= 0
        assert share.max() <= 1
        assert np.quantile(share, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.06)
    assert sorted(set(found.hue.tolist())) == list(range(-18, 18))


def test_every_image_has_its_own_draws():
    images = jnp.asarray(np.stack([photo(24, 31)] * 5))
    sizes = jnp.tile(jnp.array([31, 24], jnp.int32), (5, 1))
    distorted = jax.jit(photometric_distortion)(jax.random.key(1), images, sizes)
    assert distorted.dtype == jnp.uint8
    assert len({x.tobytes() for x in np.asarray(distorted)}) == 5
    fewer = jax.jit(photometric_distortion)(jax.random.key(1), images[:2], sizes[:2])
    np.testing.assert_array_equal(fewer, distorted[:2])
