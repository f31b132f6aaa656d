"""Narrow inputs where 64 bits are enabled: Python's integers are 64-bit then, kernels' are not."""

import functools

import jax
import jax.numpy as jnp
import pytest

import kernels_pallas

NAME = "pallas_triton"
TOKENS, MAP = (2, 20), (2, 8, 8)


def calls(dtype):
    """Each operator with shapes of what it takes."""

    def shape(*sizes, dtype=dtype):
        return jax.ShapeDtypeStruct(sizes, dtype)

    def weights(*sizes):
        return shape(*sizes, dtype="float32")

    keys, values, x = shape(*TOKENS, 2, 16), shape(*TOKENS, 2, 32), shape(*MAP, 32)
    mixed = (shape(*TOKENS, 3 * 32 + 16), shape(*TOKENS, 32), weights(32), shape(16, 32))
    return {
        "bidirectional_gla": ({}, (keys, keys, values, keys, keys)),
        "vig_mixer": ({"heads": 2}, (*mixed, weights(32), weights(16), weights(16), shape(32, 32))),
        "norm_act": ({"kind": "layer", "epsilon": 1e-5, "activation": "gelu"}, (x, weights(32))),
        "residual_norm": ({"kind": "rms", "epsilon": 1e-5}, (x, x, weights(32))),
        "depthwise_conv": ({"activation": "silu"}, (x, shape(3, 3, 1, 32))),
        "im2col": ({"kernel_size": 3, "stride": 2}, (shape(2, 16, 16, 3),)),
        "swiglu": ({}, (x,)),
        "linear_swiglu": ({}, (x, shape(32, 64))),
        "swiglu_mlp": ({}, (x, shape(32, 64), shape(32, 32))),
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", calls("float32"))
def test_lowers_for_cuda(op, dtype):
    if dtype == "float32" and op in ("linear_swiglu", "swiglu_mlp"):
        pytest.skip("served in bfloat16 alone")
    options, arguments = calls(dtype)[op]
    run = functools.partial(getattr(kernels_pallas, op), implementation=NAME, **options)

    def with_gradients(*arguments):
        out, pullback = jax.vjp(run, *arguments)
        return out, pullback(jax.tree.map(jnp.ones_like, out))

    with jax.enable_x64(True):
        traced = jax.jit(with_gradients).trace(*arguments)
        assert len(traced.lower(lowering_platforms=("cuda",)).as_text()) > 0
