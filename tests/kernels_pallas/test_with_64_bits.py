"""Narrow inputs where 64 bits are enabled: Python's integers are 64-bit then, kernels' are not."""

import functools

import jax
import jax.numpy as jnp
import pytest

import kernels_pallas

NAME = "pallas_triton"
TOKENS = (2, 20)


def calls(dtype):
    """Each operator with shapes of what it takes."""

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def weights(*sizes):
        return shape(*sizes, dtype="float32")

    keys, values = shape(*TOKENS, 2, 16), shape(*TOKENS, 2, 32)
    mixed = (shape(*TOKENS, 3 * 32 + 16), shape(*TOKENS, 32), weights(32), shape(16, 32))
    return {
        "bidirectional_gla": ({}, (keys, keys, values, keys, keys)),
        "vig_mixer": ({"heads": 2}, (*mixed, weights(32), weights(16), weights(16), shape(32, 32))),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", calls("float32"))
def test_lowers_for_cuda(op, dtype):
    options, arguments = calls(dtype)[op]
    run = functools.partial(getattr(kernels_pallas, op), implementation=NAME, **options)

    def with_gradients(*arguments):
        out, pullback = jax.vjp(run, *arguments)
        return out, pullback(jax.tree.map(jnp.ones_like, out))

    with jax.enable_x64(True):
        traced = jax.jit(with_gradients).trace(*arguments)
        assert "triton" in traced.lower(lowering_platforms=("cuda",)).as_text()
