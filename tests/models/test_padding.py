"""Images in a padded canvas have the features of the images alone."""

import collections
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from kernels_pallas.testing import interpret, rms_relative_error
from vig_jax.errors import ConfigError
from vig_jax.layers import padding

PLAIN = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
MODELS = {
    "vig_t": PLAIN,  # with both activations
    "vig_s": PLAIN,
    "vig_h_t": {
        "embed_dims": (8, 8, 16, 16),
        "depths": (1, 1, 1, 1),
        "num_heads": (1, 1, 2, 2),
        "out_norms": True,
    },
}
TOLERANCES = {"float64": 1e-12, "float32": 1e-5}  # of maps; 10 times that for gradients
# The canvas, and in it two images and a row without one, in units of the largest stride.
CANVAS = {"vig_t": (4, 5), "vig_s": (4, 5), "vig_h_t": (2, 3)}
SIZES = {
    "vig_t": ((2, 3), (3, 1), (0, 0)),
    "vig_s": ((2, 3), (3, 1), (0, 0)),
    "vig_h_t": ((1, 2), (2, 1), (0, 0)),
}
FILLS = (np.nan, 100.0, -100.0)  # of the padding of each row
slow = functools.partial(pytest.param, marks=pytest.mark.slow)


def small_model(name, **changed):
    settings = {"num_classes": 0, "gla_implementation": "reference"} | MODELS[name]
    return vig_jax.create_model(name, **(settings | changed))


def unit(model):
    return model.feature_info[-1].reduction


def inputs(name, model, dtype):
    """Returns variables, canvases in which every pixel has a value, and sizes in pixels."""
    generator = np.random.default_rng(0)
    sizes = np.asarray(SIZES[name], np.int32) * unit(model)
    shape = (len(sizes), *(n * unit(model) for n in CANVAS[name]), 3)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.tree.map(
        lambda x: ((x.ndim == 1) + 0.2 * generator.standard_normal(x.shape)).astype(dtype),
        jax.eval_shape(functools.partial(model.init, method="features"), jax.random.key(0), images),
    )
    return variables, generator.standard_normal(shape).astype(dtype), sizes


def padded(images, sizes):
    """Returns the images with garbage outside of `sizes`."""
    images = images.copy()
    for image, (height, width), fill in zip(images, sizes, FILLS, strict=True):
        image[height:] = fill
        image[:, width:] = fill
    return images


@functools.cache
def program(model):
    """Returns a compiled function: maps, and gradients of a weighted sum of all of them."""

    def weighted(variables, images, sizes):
        maps = model.apply(variables, images, method="features", sizes=sizes)
        total = 0.0
        for x in maps:  # a cell has the same weight in every canvas
            rows, columns = jnp.arange(x.shape[1])[:, None], jnp.arange(x.shape[2])
            total += jnp.sum(x * jnp.cos(rows + 3 * columns)[..., None].astype(x.dtype))
        return total, maps

    def run(variables, images, sizes=None):
        grads, maps = jax.grad(weighted, argnums=(0, 1), has_aux=True)(variables, images, sizes)
        return maps, *grads

    return jax.jit(run)


def cut(x, size, stride=1):
    return x[: size[0] // stride, : size[1] // stride]


def alone(model, variables, images, sizes):
    """Returns the results of `program` for each image without padding."""
    return [
        program(model)(variables, cut(image, size)[None])
        for image, size in zip(images, sizes, strict=True)
        if size[0]
    ]


def check(actual, expected, sizes, model, tolerance):
    """Compares the results for padded images with those for each of them alone."""
    actual, expected = jax.tree.map(np.array, (actual, expected))
    maps, grads, image_grads = actual
    close = functools.partial(rms_close, tolerance=tolerance)
    for number, size in enumerate(sizes):
        for x, info in zip(maps, model.feature_info, strict=True):
            outside = x[number].copy()
            cut(outside, size, info.reduction)[...] = 0
            assert not np.any(outside)
        outside = image_grads[number].copy()
        cut(outside, size)[...] = 0
        assert not np.any(outside)
    for number, (lone_maps, _, lone_image_grads) in enumerate(expected):
        size = sizes[number]
        for x, lone, info in zip(maps, lone_maps, model.feature_info, strict=True):
            close(cut(x[number], size, info.reduction), lone[0])
        rms_close(cut(image_grads[number], size), lone_image_grads[0], 10 * tolerance)
    total = jax.tree.map(lambda *x: sum(x), *(grads for _, grads, _ in expected))
    jax.tree.map(functools.partial(rms_close, tolerance=10 * tolerance), grads, total)


def rms_close(actual, expected, tolerance):
    chex.assert_equal_shape([actual, expected])
    assert rms_relative_error(actual, expected) < tolerance


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("vig_t", "float64"),
        slow("vig_s", "float32"),
        slow("vig_h_t", "float64"),  # test_detector.py pads its maps
        slow("vig_s", "float64"),
        slow("vig_h_t", "float32"),
    ],
)
def test_images_of_different_sizes_in_one_canvas(name, dtype):
    """Maps and gradients are those of the images alone, in one program for all sizes."""
    with jax.enable_x64(dtype == "float64"):
        model = small_model(name)
        variables, images, sizes = inputs(name, model, dtype)
        expected = alone(model, variables, images, sizes)
        run = program(model)
        for order in ([0, 1, 2], [1, 0, 2]):
            before = run._cache_size()
            placed = padded(images[order], sizes[order])
            actual = run(variables, placed, jnp.asarray(sizes[order]))
            lone = [expected[i] for i in order[:2]]
            check(actual, lone, sizes[order], model, TOLERANCES[dtype])
        assert run._cache_size() == before


@pytest.mark.parametrize("name", ["vig_t", slow("vig_h_t")])
def test_the_canvas_does_not_matter(name):
    """An image padded on the right, below, or both; without sizes, padding changes the maps."""
    with jax.enable_x64(True):
        model = small_model(name)
        variables, images, sizes = inputs(name, model, "float64")
        (height, width), (rows, columns) = sizes[0], images.shape[1:3]

        def features(canvas, **options):
            apply = functools.partial(model.apply, method="features", **options)
            image = cut(images[0], (height, width))
            below, right = canvas[0] - height, canvas[1] - width
            image = np.pad(image, ((0, below), (0, right), (0, 0)))[None]
            maps = jax.jit(apply)(variables, image)
            return [
                cut(x[0], (height, width), info.reduction)
                for x, info in zip(maps, model.feature_info, strict=True)
            ]

        expected = features((height, width))
        known = functools.partial(features, sizes=sizes[:1])
        for canvas in ((height, columns), (rows, width), (rows, columns)):
            jax.tree.map(functools.partial(rms_close, tolerance=1e-12), known(canvas), expected)
        unmoved = known((rows, width), padded_right=False)
        jax.tree.map(functools.partial(rms_close, tolerance=1e-12), unmoved, expected)
        untouched = features((rows, columns))
        assert min(map(rms_relative_error, untouched, expected)) > 1e-3


def test_remat_changes_no_gradient():
    with jax.enable_x64(True):
        model = small_model("vig_t")
        variables, images, sizes = inputs("vig_t", model, "float64")
        arguments = variables, padded(images, sizes), jnp.asarray(sizes)
        expected = program(model)(*arguments)
        actual = program(model.clone(remat=True))(*arguments)
        chex.assert_trees_all_close(actual, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["vig_t", slow("vig_h_t")])
def test_bfloat16(name):
    """Padding adds nothing to the rounding errors of an image alone."""
    model = small_model(name, dtype=jnp.bfloat16)
    variables, images, sizes = inputs(name, model, "float32")
    image = cut(images[0], sizes[0])[None]
    exact = jax.jit(functools.partial(small_model(name).apply, method="features"))
    narrow = jax.jit(functools.partial(model.apply, method="features"))
    expected, lone_maps = exact(variables, image), narrow(variables, image)
    maps = narrow(variables, padded(images, sizes), sizes=jnp.asarray(sizes))
    for x, lone, true, info in zip(maps, lone_maps, expected, model.feature_info, strict=True):
        assert x.dtype == lone.dtype == jnp.bfloat16
        error = rms_relative_error(cut(x[0], sizes[0], info.reduction), true[0])
        assert error < 1.5 * rms_relative_error(lone, true)
        assert not np.any(x[2])


@pytest.mark.slow  # compiles for long; pads are made outside of the kernels
def test_interpreted_kernels():
    """Chunks of 16 tokens hold valid ones and pads, or pads alone."""
    reference = small_model("vig_s", depth=1)
    variables, images, sizes = inputs("vig_s", reference, "float32")
    expected = alone(reference, variables, images, sizes)
    model = reference.clone(gla_implementation="pallas_triton")
    with interpret():
        actual = program(model)(variables, padded(images, sizes), jnp.asarray(sizes))
    check(actual, expected, sizes, model, TOLERANCES["float32"])


@pytest.mark.parametrize("name", ["vig_t", "vig_h_t"])
def test_only_padding_on_the_right_moves_tokens(name, monkeypatch):
    """Without it nothing is gathered, and without sizes nothing is masked."""
    model = small_model(name)
    variables, images, sizes = inputs(name, model, "float32")
    calls = collections.Counter()

    def count(owner, method):
        original = getattr(owner, method)

        def counted(*arguments):
            calls[method] += 1
            return original(*arguments)

        monkeypatch.setattr(owner, method, counted)

    count(padding, "take_tokens")
    count(padding.Padding, "zero_pads")

    def trace(**options):
        calls.clear()
        apply = functools.partial(model.apply, method="features", **options)
        jax.eval_shape(apply, variables, images)
        return calls["take_tokens"], calls["zero_pads"]

    blocks = sum(depth for _, depth in model.stage_sizes)
    ends = 1 + len(model.feature_info)  # the pixels and the maps
    assert trace() == (0, 0)
    assert trace(sizes=jnp.asarray(sizes)) == (2 * blocks, blocks + ends)
    sizes[:2, 1] = images.shape[2]
    assert trace(sizes=sizes, padded_right=False) == (0, 2 * blocks + ends)


@pytest.mark.parametrize(
    ("name", "sizes", "padded_right", "message"),
    [
        ("vig_t", [[16, 20]], True, "size 16x20 must be multiples of 8 up to the images' 32x64"),
        ("vig_h_t", [[32, 48]], True, "multiples of 32"),
        ("vig_h_t", [[64, 32]], True, "up to the images' 32x64"),
        ("vig_h_t", [[-32, 32]], True, "up to the images' 32x64"),
        ("vig_h_t", [[32, 32]], False, "narrower than the images' 64 pixels"),
        ("vig_h_t", [[32, 32]] * 2, True, r"int64\[2, 2\]; they must be integers \[1, 2\]"),
        ("vig_t", [[32.0, 32.0]], True, r"float64\[1, 2\]"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_sizes_that_do_not_fit(name, sizes, padded_right, message):
    model = small_model(name)
    images = jax.ShapeDtypeStruct((1, 32, 64, 3), jnp.float32)
    options = {"sizes": np.asarray(sizes), "padded_right": padded_right}
    init = functools.partial(model.init, method="features", **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(init, jax.random.key(0), images)


def test_a_stem_of_patches_of_two_pixels_refuses_sizes():
    model = small_model("vig_t", patch_size=2)
    images = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)
    init = functools.partial(model.init, method="features", sizes=np.asarray([[4, 4]]))
    with pytest.raises(ConfigError, match="patch_size=2 must be at least 4"):
        jax.eval_shape(init, jax.random.key(0), images)
