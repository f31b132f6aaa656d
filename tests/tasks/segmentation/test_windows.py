"""Inference by windows against mmsegmentation, and of batches against single images."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import golden_seg
from tests.tasks.segmentation.golden_net import Batches, network
from vig_jax.sharding.mesh import make_mesh
from vig_jax.tasks.segmentation.label_maps import Sampler, scores
from vig_jax.tasks.segmentation.windows import Axis, Grid, bilinear_taps, take_window

DTYPES = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)], ids=["f64", "f32"]
)


def precision(dtype):
    return jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext()


def grid_of(image, facts):
    height, width = image.shape[:2]
    (crop_height, crop_width), strides = facts["crop"], facts["stride"]
    return Grid(Axis(height, crop_height, strides[0]), Axis(width, crop_width, strides[1]))


def sampler(logits_of, variables, image, grid, original, flipped=False):
    """The logits of an image [H, W, C], cut into windows one by one."""
    size = jnp.array(image.shape[:2])
    windows = [
        take_window(image, size, jnp.array(number), grid, flipped=flipped)
        for number in grid.numbers
    ]
    logits = [logits_of(variables, window[None])[0] for window in windows]
    return Sampler.of(logits, grid, size, jnp.array(original), original[1], flipped)


def scores_of(arrays, images, grids, original, flips):
    """The scores of an image by views of it, [H, W, K]."""
    logits_of, variables = network(arrays)

    @jax.jit
    def run(images):
        views = [
            sampler(logits_of, variables, image, grid, original, flipped)
            for image, grid in zip(images, grids, strict=True)
            for flipped in flips
        ]
        return scores(views, jnp.arange(original[0]))

    return np.asarray(run([jnp.asarray(image) for image in images]))


@DTYPES
@pytest.mark.parametrize("case", golden_seg.facts("slide")["windows"])
def test_golden_sliding_windows(case, dtype, tolerance):
    facts, arrays = golden_seg.load("slide")
    image = golden_seg.last(arrays[f"input/{case}"])[0].astype(dtype)
    shape = image.shape[:2]
    grid = grid_of(image, facts)
    axes = (grid.rows, grid.columns)
    tops, lefts = (
        axis.start(jnp.array(side), jnp.arange(axis.count)).tolist()
        for axis, side in zip(axes, shape, strict=True)
    )
    height, width = (axis.window for axis in axes)
    boxes = [[top, left, top + height, left + width] for top in tops for left in lefts]
    assert boxes == facts["windows"][case]
    with precision(dtype):
        found = scores_of(arrays, [image], [grid], shape, (False,))
    assert found.dtype == dtype
    expected = golden_seg.last(arrays[f"output/{case}"])[0]
    assert golden_seg.relative_error(found, expected) < tolerance


@DTYPES
@pytest.mark.parametrize("flipped", [False, True])
def test_golden_logits_and_labels_of_the_original_image(flipped, dtype, tolerance):
    facts, arrays = golden_seg.load("slide")
    image = golden_seg.last(arrays["input/main"])[0].astype(dtype)
    if flipped:  # the golden logits are those of this image, taken for a mirror image
        image = image[:, ::-1]
    with precision(dtype):
        grid, original = grid_of(image, facts), tuple(facts["ori_shape"])
        logits = scores_of(arrays, [image], [grid], original, (flipped,))
    post = f"post/{'flipped' if flipped else 'straight'}"
    expected = golden_seg.last(arrays[f"{post}/logits"])
    assert golden_seg.relative_error(logits[..., : expected.shape[-1]], expected) < tolerance
    np.testing.assert_array_equal(logits.argmax(-1), arrays[f"{post}/label"])


@DTYPES
def test_golden_several_scales_and_flips(dtype, tolerance):
    facts, arrays = golden_seg.load("multi_scale")
    images = [golden_seg.last(x)[0].astype(dtype) for x in golden_seg.numbered(arrays, "input/")]
    grids = [Grid(*(Axis(side, side, 1) for side in image.shape[:2])) for image in images]
    with precision(dtype):
        mean = scores_of(arrays, images, grids, tuple(facts["ori_shape"]), (False, True))
    expected = golden_seg.last(arrays["mean_probabilities"])
    assert golden_seg.relative_error(mean, expected) < tolerance
    np.testing.assert_array_equal(mean.argmax(-1), arrays["label"])


@pytest.mark.parametrize(("source", "target"), [(7, 7), (5, 13), (13, 5), (1, 4), (16384, 9)])
def test_taps_of_the_resize(source, target):
    first, second, weight = bilinear_taps(jnp.arange(target), source, target)
    place = np.maximum((np.arange(target) + 0.5) * source / target - 0.5, 0)
    np.testing.assert_array_equal(first, np.floor(place))
    np.testing.assert_array_equal(second, np.minimum(np.floor(place) + 1, source - 1))
    np.testing.assert_allclose(weight, place % 1, atol=1e-6)


@pytest.mark.parametrize(("scales", "flip"), [(1, False), (2, True)])
def test_images_of_a_batch_do_not_depend_on_each_other_or_on_padding(scales, flip):
    labels, counts = Batches(scales).run(scales=scales, flip=flip)
    assert labels.dtype == np.uint8
    arrays = golden_seg.load("slide").arrays
    batches = Batches(scales)
    crop = {"crop": batches.crop, "stride": batches.stride}
    rows = range(8) if scales == 1 else (1, 4, 6)  # each compiles for seconds
    for row in rows:
        height, width = batches.sizes[row]
        images = [
            batches.batch[name][row, :height, :width]
            for name in batches.batch
            if name.startswith("image")
        ]
        grids = [grid_of(image, crop) for image in images]
        tall, wide = original = batches.originals[row]
        flips = (False, True) if flip else (False,)
        alone = scores_of(arrays, images, grids, original, flips).argmax(-1)
        np.testing.assert_array_equal(labels[row, :tall, :wide], alone)
        expected = np.zeros(counts.shape[1:], int)
        np.add.at(expected, (batches.batch["mask"][row, :tall, :wide], alone), 1)
        np.testing.assert_array_equal(counts[row], expected)
    elsewhere = Batches(scales, fill=np.nan).run(scales=scales, flip=flip)
    np.testing.assert_array_equal(elsewhere[1], counts)


def test_several_programs_do_what_one_does():
    one = Batches().run()
    several = Batches().run(make_mesh())
    jax.tree.map(np.testing.assert_array_equal, several, one)
