"""Layers against formulas in NumPy."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vig_jax.layers.linear import torch_conv, uniform_bias
from vig_jax.layers.locality import DepthwiseConv
from vig_jax.layers.mlp import SwiGLU
from vig_jax.layers.norm import Residual, layer_norm, rms_norm
from vig_jax.layers.padding import valid_tokens
from vig_jax.layers.pos_embed import (
    bicubic_matrix,
    resize_pos_embed,
    resize_pos_embed_to_sizes,
)
from vig_jax.layers.stem import HalvingConv, PatchConv


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_rms_norm():
    x, scale = normal((2, 3, 4, 8)), normal((8,), 1)
    expected = x / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-6) * scale
    actual = rms_norm(jnp.float32).apply({"params": {"scale": scale}}, jnp.array(x))
    chex.assert_trees_all_close(actual, expected.astype(np.float32), rtol=1e-5)


def test_rms_norm_of_tiny_bfloat16_values_uses_float32_statistics():
    x = jnp.full((1, 1, 1, 8), 1e-9, jnp.bfloat16)
    actual = rms_norm(jnp.float32).apply({"params": {"scale": jnp.ones(8)}}, x)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(actual, np.float32), 1e-6, rtol=1e-2)


@pytest.mark.parametrize("scale", [None, (0.0, 2.0)])
def test_layer_norm_adds_the_branch_first(scale):
    x, branch = normal((2, 3, 4, 8)), normal((2, 3, 4, 8), 1)
    total = x + branch * (1 if scale is None else np.reshape(scale, (2, 1, 1, 1)))
    centred = total - total.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    factors = None if scale is None else jnp.asarray(scale)
    stream = Residual(jnp.asarray(x), jnp.asarray(branch), factors)
    variables = {"params": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}}
    added, actual = layer_norm(jnp.float32).apply(variables, stream, method="add")
    np.testing.assert_allclose(added, total, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(stream.total(), total, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("activation", [None, "silu"])
@pytest.mark.parametrize("size", [(4, 6), (1, 1), (1, 5), (2, 2)])
def test_depthwise_conv(size, activation):
    x, kernel = normal((2, *size, 5)), normal((3, 3, 1, 5), 1)
    padded = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros(x.shape)
    for i, j in np.ndindex(3, 3):
        expected += padded[:, i : i + size[0], j : j + size[1]] * kernel[i, j, 0]
    if activation:
        expected = expected / (1 + np.exp(-expected))
    layer = DepthwiseConv(activation)
    actual = layer.apply({"params": {"kernel": jnp.asarray(kernel)}}, jnp.asarray(x))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "stride"), [(PatchConv(8, 8), 8), (PatchConv(8, 2), 2), (HalvingConv(8), 2)], ids=str
)
@pytest.mark.parametrize("size", [(32, 48), (7, 31), (33, 9)])
def test_convolutions_of_the_stem(size, layer, stride):
    x = jnp.asarray(normal((2, *size, 3)))
    expected_layer = nn.Conv(
        8,
        (stride + 1, stride + 1),
        strides=stride,
        padding=1,
        kernel_init=torch_conv,
        bias_init=uniform_bias(3 * (stride + 1) ** 2),
        precision="highest",
    )
    expected_variables = expected_layer.init(jax.random.key(0), x)
    variables = layer.init(jax.random.key(0), x)
    chex.assert_trees_all_equal(variables, expected_variables)
    expected = expected_layer.apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), expected, rtol=1e-5, atol=1e-5)


def test_swiglu():
    x, up, down = normal((3, 4)), normal((4, 12), 1), normal((6, 4), 2)
    gate, y = np.split(x.astype(np.float64) @ up, 2, axis=-1)
    expected = (gate / (1 + np.exp(-gate)) * y) @ down
    params = {"gate_proj": {"kernel": up}, "down_proj": {"kernel": down}}
    actual = SwiGLU(features=4, hidden=6).apply({"params": params}, jnp.asarray(x))
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_bicubic_matrix_keeps_constants_and_its_own_grid():
    np.testing.assert_allclose(bicubic_matrix(14, 9).sum(axis=1), 1.0, atol=1e-12)
    np.testing.assert_allclose(bicubic_matrix(7, 7), np.eye(7), atol=1e-12)


def test_bicubic_matrix_known_row():
    # Twice the size: output 3 lies at source 1.25, taps 0..3 at distances 1.25, 0.25, 0.75, 1.75.
    row = bicubic_matrix(4, 8)[3]
    np.testing.assert_allclose(row, [-0.10546875, 0.87890625, 0.26171875, -0.03515625], atol=1e-12)


def test_resize_pos_embed_is_separable_and_row_major():
    table = normal((1, 9, 2))
    resized = resize_pos_embed(jnp.asarray(table), (2, 5))
    rows, cols = bicubic_matrix(3, 2), bicubic_matrix(3, 5)
    expected = np.einsum("hi,wj,ijd->hwd", rows, cols, table.reshape(3, 3, 2))
    np.testing.assert_allclose(resized[0], expected, rtol=1e-5, atol=1e-6)
    unchanged = resize_pos_embed(jnp.asarray(table), (3, 3))
    chex.assert_trees_all_equal(unchanged.reshape(1, 9, 2), jnp.asarray(table))


def test_resize_pos_embed_to_sizes():
    """Each size as `resize_pos_embed` has it: smaller, larger, the table's own, and none."""
    sizes, grid = [(2, 5), (4, 4), (7, 1), (3, 9), (0, 0)], (7, 9)
    with jax.enable_x64(True):
        table = jnp.asarray(normal((1, 16, 2)), jnp.float64)
        resize = jax.jit(resize_pos_embed_to_sizes, static_argnums=2)
        actual = resize(table, jnp.asarray(sizes, jnp.int32), grid)
        for (rows, columns), x in zip(sizes, actual, strict=True):
            expected = np.zeros((*grid, 2))
            if rows:
                expected[:rows, :columns] = resize_pos_embed(table, (rows, columns))[0]
            np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-13)
        np.testing.assert_array_equal(actual[1, :4, :4], table.reshape(4, 4, 2))


def test_padding_gathers_valid_tokens_and_zeros():
    x = normal((2, 3, 4, 2))
    x[0, :, 3] = x[0, 2] = x[1, 1:] = np.nan
    padding = valid_tokens(jnp.asarray([[2, 3], [1, 4]]), (3, 4))
    tokens = padding.flatten(jnp.asarray(x))
    np.testing.assert_array_equal(tokens[0, :6], x[0, :2, :3].reshape(6, 2))
    np.testing.assert_array_equal(tokens[1, :4], x[1, 0])
    assert not np.any(tokens[0, 6:])
    assert not np.any(tokens[1, 4:])
    np.testing.assert_array_equal(padding.unflatten(tokens), np.nan_to_num(x))
    # The valid part of the second image has all columns.
    unmoved = valid_tokens(jnp.asarray([[1, 4]]), (3, 4), padded_right=False)
    np.testing.assert_array_equal(unmoved.flatten(jnp.asarray(x[1:])), tokens[1:])


def test_mixer_does_not_leak_between_images():
    from vig_jax.layers.gated_linear_attention import GatedLinearAttention

    layer = GatedLinearAttention(features=8, num_heads=2)
    x = jnp.asarray(normal((2, 3, 4, 8)))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    apply = jax.jit(layer.apply)
    both, alone = apply(variables, x), apply(variables, x[1:])
    chex.assert_trees_all_close(both[1:], alone, rtol=1e-5, atol=1e-8)
