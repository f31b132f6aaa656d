"""Images packed in rows have the logits and gradients of the images alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vig_jax
from kernels_pallas.testing import TOLERANCES, rms_relative_error
from kernels_pallas.testing.op_test import on_gpu
from vig_jax.errors import ConfigError
from vig_jax.inference.packing import pack
from vig_jax.layers.packing import Packing
from vig_jax.layers.pos_embed import resize_pos_embed, resize_pos_embed_at

SETTINGS = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2}
GRIDS = ((2, 3), (4, 4), (3, 1))  # one of the position embedding's size
TOKENS, MOST = 20, 3  # a row ends in tokens without an image, and has room for one more


def small_model(name="vig_s", **changed):
    settings = SETTINGS | {"gla_implementation": "reference"} | changed
    return vig_jax.create_model(name, num_classes=5, **settings)


def inputs(model, dtype="float32"):
    """Returns variables and normalised images."""
    generator = np.random.default_rng(0)
    side = model.patch_size
    images = [generator.standard_normal((h * side, w * side, 3)).astype(dtype) for h, w in GRIDS]
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    variables = jax.tree.map(
        lambda x: jnp.asarray((x.ndim == 1) + 0.2 * generator.standard_normal(x.shape), dtype),
        shapes,
    )
    return variables, images


def weighted(logits):
    return jnp.sum(logits * jnp.cos(jnp.arange(logits.shape[-1])).astype(logits.dtype))


def packed_results(model, variables, images):
    """Returns logits of the images, and gradients of their weighted sum."""
    patches, sizes, places = pack(images, model.patch_size, tokens=TOKENS, most_images=MOST)
    for row, size in zip(patches, sizes, strict=True):
        row[size.prod(axis=1).sum() :] = np.nan

    @jax.jit
    def run(variables, patches):
        def loss(variables, patches):
            logits = model.apply(variables, patches, sizes, method="packed")[tuple(places.T)]
            return weighted(logits), logits

        return jax.grad(loss, argnums=(0, 1), has_aux=True)(variables, patches)

    (grads, patch_grads), logits = run(variables, patches)
    return logits, grads, patch_grads


def alone_results(model, variables, images):
    @jax.jit
    def run(variables, image):
        def loss(variables):
            logits = model.apply(variables, image[None])[0]
            return weighted(logits), logits

        return jax.grad(loss, has_aux=True)(variables)

    results = [run(variables, image) for image in images]
    grads = jax.tree.map(lambda *x: sum(x), *(grads for grads, _ in results))
    return jnp.stack([logits for _, logits in results]), grads


def check(model, dtype, tolerance):
    variables, images = inputs(model, dtype)
    logits, grads, patch_grads = packed_results(model, variables, images)
    expected, expected_grads = alone_results(model, variables, images)
    for mine, right in zip(logits, expected, strict=True):
        assert rms_relative_error(mine, right) <= tolerance
    for mine, right in zip(*map(jax.tree.leaves, (grads, expected_grads)), strict=True):
        assert rms_relative_error(mine, right) <= 10 * tolerance
    assert np.isfinite(patch_grads).all()


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("vig_t", {"remat": True, "depth": 1}),  # with both activations
        pytest.param("vig_s", {"img_size": 40}, marks=pytest.mark.slow),
    ],
)
def test_packed_images_are_the_images_alone(name, settings):
    with jax.enable_x64(True):
        check(small_model(name, **settings), "float64", 1e-12)


def test_packed_images_in_float32():
    model = small_model(depth=1, gla_implementation="xla_chunked")
    variables, images = inputs(model)
    patches, sizes, places = pack(images, model.patch_size, tokens=TOKENS, most_images=MOST)
    run = jax.jit(functools.partial(model.apply, method="packed"))
    logits = run(variables, patches, sizes)[tuple(places.T)]
    for mine, image in zip(logits, images, strict=True):
        right = jax.jit(model.apply)(variables, image[None])[0]
        assert rms_relative_error(mine, right) <= TOLERANCES["float32"].forward
    patches, sizes, _ = pack([images[0], images[2]], 8, tokens=TOKENS, most_images=MOST, multiple=2)
    run(variables, patches, sizes)
    assert run._cache_size() == 1  # other sizes need no other program


def test_neighbours_of_tokens():
    """They are those in a map of the image with zeros around it."""
    sizes = jnp.array([[[2, 3], [0, 0], [3, 1]]])
    packing = Packing.from_sizes(sizes, 11)
    x = jnp.arange(1.0, 12)[None, :, None]
    maps = [np.arange(1.0, 7).reshape(2, 3), np.arange(7.0, 10).reshape(3, 1)]
    for down in (-1, 0, 1):
        for right in (-1, 0, 1):
            found = packing.neighbours(x, down, right)[0, :, 0]
            expected = [
                np.pad(image, 1)[1 + down :, 1 + right :][: image.shape[0], : image.shape[1]]
                for image in maps
            ]
            np.testing.assert_array_equal(
                found, np.concatenate([*(x.ravel() for x in expected), [0, 0]])
            )
    np.testing.assert_allclose(packing.mean(x)[0, :, 0], [3.5, 0, 8])


def test_position_embedding_of_packed_tokens():
    table = jnp.asarray(np.random.default_rng(0).standard_normal((1, 16, 6)), jnp.float32)
    sizes = np.array([[(4, 4), (2, 5), (7, 1)]])
    packing = Packing.from_sizes(jnp.asarray(sizes), 35)
    actual = resize_pos_embed_at(
        table, (packing.height, packing.width), (packing.row, packing.column)
    )
    maps = [resize_pos_embed(table, tuple(size)).reshape(-1, 6) for size in sizes[0].tolist()]
    np.testing.assert_allclose(actual[0], jnp.concatenate([*maps, jnp.zeros((2, 6))]), atol=1e-6)


def test_packed_images_lower_for_cuda():
    model = small_model(depth=1, gla_implementation=None)
    variables, images = inputs(model)
    patches, sizes, _ = pack(images, model.patch_size, tokens=TOKENS, most_images=MOST)
    run = jax.jit(functools.partial(model.apply, method="packed"))
    text = run.trace(variables, patches, sizes).lower(lowering_platforms=("cuda",)).as_text()
    assert "gla_forward" in text


@on_gpu
@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_packed_images_on_a_gpu(dtype):
    model = small_model(
        "vig_s", embed_dim=128, dtype=jnp.dtype(dtype), gla_implementation="pallas_triton"
    )
    check(model, "float32", TOLERANCES[dtype].forward * 4)


def test_drop_path_is_drawn_per_image():
    """The draws, and so the results and gradients, are those of the images as a batch."""
    model = small_model(drop_path_rate=0.5)
    with jax.enable_x64(True):
        variables, _ = inputs(model, "float64")
        images = np.random.default_rng(1).standard_normal((6, 16, 24, 3))
        patches, sizes, places = pack(list(images), 8, tokens=20, most_images=3)
        assert places.tolist() == [[i // 3, i % 3] for i in range(6)]

        def gradients(inputs, **options):
            @jax.jit
            def run(key, inputs):
                def loss(variables):
                    logits = model.apply(
                        variables, *inputs, train=True, rngs={"dropout": key}, **options
                    )
                    return weighted(logits), logits.reshape(6, -1)

                return jax.grad(loss, has_aux=True)(variables)

            return [run(jax.random.key(seed), inputs) for seed in (3, 4)]

        mine = gradients((patches, sizes), method="packed")
        right = gradients((images,))
        for one, other in zip(*map(jax.tree.leaves, (mine, right)), strict=True):
            assert rms_relative_error(one, other) <= 1e-11
        assert rms_relative_error(mine[0][1], mine[1][1]) > 0.01


def test_numbers_of_images_at_their_tokens():
    packing = Packing.from_sizes(jnp.array([[[2, 1], [0, 0], [1, 2]]]), 5)
    found = packing.at_tokens(jnp.array([[3.0, 7.0, 5.0]]))
    assert found.tolist() == [[3, 3, 5, 5, 1]]


@pytest.mark.parametrize(
    ("patches", "sizes", "message"),
    [
        (np.zeros((1, 8, 8, 8, 1)), np.zeros((1, 1, 2), int), r"\[rows, tokens, 8, 8, 3\]"),
        (np.zeros((1, 8, 8, 8, 3), int), np.zeros((1, 1, 2), int), "must be normalised floats"),
        (np.zeros((1, 8, 8, 8, 3)), np.zeros((2, 1, 2), int), r"must be integers \[1, N, 2\]"),
        (np.zeros((1, 8, 8, 8, 3)), np.full((1, 1, 2), 3), "9 patches are more than the 8 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(patches, sizes, message, unchecked):
    model = small_model()
    variables, _ = inputs(model)
    with pytest.raises(ValueError, match=message):
        model.apply(variables, patches, sizes, method="packed")


def test_small_patches_are_refused():
    arrays = jnp.zeros((1, 1, 2, 2, 3)), jnp.ones((1, 1, 2), jnp.int32)
    init = functools.partial(small_model(patch_size=2).init, method="packed")
    with pytest.raises(ConfigError, match="patch_size=2 must be at least 4"):
        jax.eval_shape(init, jax.random.key(0), *arrays)
