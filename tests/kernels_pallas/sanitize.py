"""Runs every operator's kernels once, both passes, and compares them with plain JAX on the CPU.

Made for compute-sanitizer, which `make sanitize` runs it under: shapes are small, and do not fit
tiles. Results that are off by more than the tolerance table allows make the exit status 1.
"""

import functools
import sys
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import kernels_pallas as kp
from kernels_pallas.core.arg_specs import on_device
from kernels_pallas.core.derivatives import is_float, vjp_of_floats
from kernels_pallas.testing import TOLERANCES, random_inputs, rms_relative_error

Case = tuple[str, Callable[..., Any], tuple[jax.Array, ...]]
"""Title, function of `implementation` and arrays, arrays."""

NAME = "pallas_triton"
_TYPE = "bfloat16"


def cases() -> Iterator[Case]:
    """Of all operators; the title starts with the operator's name."""
    generator = np.random.default_rng(0)

    def normal(*shape: int, deviation: float = 1.0, mean: float = 0.0, dtype: str = _TYPE) -> Any:
        return on_device(mean + deviation * generator.standard_normal(shape), dtype)

    def weight(*shape: int) -> Any:
        return normal(*shape, deviation=0.3, mean=1.0, dtype="float32")

    # A ragged last chunk, odd widths, less than a chunk, several segments.
    for shape in ((1, 50, 2, 32, 64), (2, 37, 1, 16, 32), (1, 9, 1, 24, 40), (1, 600, 1, 32, 64)):
        for gates in ("typical", "strong"):
            names = ("batch", "tokens", "heads", "key_width", "value_width")
            sizes: Any = dict(zip(names, shape, strict=True))
            inputs = random_inputs(0, **sizes, gates=gates, dtype=_TYPE, decay_dtype=_TYPE)
            yield f"bidirectional_gla {shape}, {gates}", kp.bidirectional_gla, inputs[:5]
    inputs = random_inputs(0, batch=1, tokens=33, heads=1, key_width=16, value_width=32)
    yield "gla, float32", kp.gla, inputs[:4]

    for batch, tokens, heads, width in ((1, 50, 2, 64), (2, 49, 3, 32), (1, 600, 1, 64)):
        for strength in (0.25, 25.0):  # the latter for the pass for strong decays
            channels, rank = heads * width, 16
            arrays = (
                normal(batch, tokens, 3 * channels + rank),
                normal(batch, tokens, channels),
                normal(channels, dtype="float32"),
                normal(rank, channels, deviation=strength),
                normal(channels, dtype="float32"),
                weight(width),
                weight(width),
                normal(channels, 48, deviation=0.1),
            )
            run = functools.partial(kp.vig_mixer, heads=heads)
            yield f"vig_mixer {(batch, tokens, heads, width)}, {strength}", run, arrays

    for kind, rows, width, activation in (
        ("rms", 33, 192, None),
        ("layer", 45, 96, "silu"),
        ("layer", 45, 48, "gelu"),
    ):
        run = functools.partial(kp.norm_act, kind=kind, epsilon=1e-6, activation=activation)
        arrays = normal(rows, width), weight(width), normal(width, dtype="float32")
        yield f"norm_act {kind}, {activation}", run, arrays
    run = functools.partial(kp.residual_norm, kind="rms", epsilon=1e-6)
    yield "residual_norm rms", run, (normal(2, 17, 384), normal(2, 17, 384), weight(384))
    keep = jnp.asarray([2.0, 0.0], "float32")
    run = functools.partial(kp.residual_norm, kind="layer", epsilon=1e-6, keep=keep)
    yield "residual_norm layer, keep", run, (normal(2, 17, 96), normal(2, 17, 96), weight(96))

    for shape in ((2, 14, 14, 64), (1, 7, 7, 96), (1, 9, 16, 33)):
        for activation in (None, "silu"):
            run = functools.partial(kp.depthwise_conv, activation=activation)
            arrays = normal(*shape), normal(3, 3, 1, shape[-1])
            yield f"depthwise_conv {shape}, {activation}", run, arrays

    kernel, down_kernel = normal(64, 256, deviation=0.2), normal(128, 64, deviation=0.1)
    yield "swiglu", kp.swiglu, (normal(70, 128),)
    yield "linear_swiglu", kp.linear_swiglu, (normal(70, 64), kernel)
    yield "swiglu_mlp", kp.swiglu_mlp, (normal(130, 64), kernel, down_kernel)

    for shape, factor in (((2, 3, 5, 37), 4), ((1, 2, 1, 11), 16), ((1, 3, 2, 150), 6)):
        size = shape[0], factor * shape[1], factor * shape[2]
        labels = jnp.asarray(generator.integers(0, shape[3] + 1, size), "uint8")
        arrays = normal(*shape), labels
        yield f"resize_cross_entropy {shape}, {factor}", kp.resize_cross_entropy, arrays

    run = functools.partial(kp.im2col, kernel_size=3, stride=2)
    yield "im2col 3, 2", run, (normal(2, 15, 16, 3),)
    run = functools.partial(kp.im2col, kernel_size=7, stride=4, columns=160, ones=True)
    yield "im2col 7, 4", run, (normal(1, 32, 32, 3),)


def results(run: Callable[..., Any], arrays: tuple[jax.Array, ...]) -> tuple[Any, Any, Any]:
    """The output alone, then with gradients: kernels differ."""

    def with_gradients(*arrays: jax.Array) -> Any:
        out, pullback = vjp_of_floats(run, *arrays)
        cotangent = jax.tree.map(  # the same numbers in every type
            lambda x: jnp.sin(jnp.arange(x.size)).astype(_TYPE).astype(x.dtype).reshape(x.shape),
            out,
        )
        return out, pullback(cotangent)

    return (jax.jit(run)(*arrays), *jax.jit(with_gradients)(*arrays))


def errors(case: Case) -> tuple[float, float]:
    """The largest of outputs and of gradients, in units of what is allowed."""
    title, run, arrays = case
    portable = (
        "xla_chunked" if title.startswith(("bidirectional_gla", "gla", "vig_mixer")) else "xla"
    )
    actual = results(functools.partial(run, implementation=NAME), arrays)
    with jax.default_device(jax.devices("cpu")[0]):
        wide = tuple(
            jnp.asarray(np.asarray(x), "float32" if is_float(x) else x.dtype) for x in arrays
        )
        expected = results(functools.partial(run, implementation=portable), wide)

    def largest(mine: Any, right: Any) -> float:
        leaves = zip(jax.tree.leaves(mine), jax.tree.leaves(right), strict=True)
        return max(rms_relative_error(x, y) for x, y in leaves)

    allowed = TOLERANCES[arrays[0].dtype.name]
    return (
        largest(actual[:2], expected[:2]) / allowed.forward,
        largest(actual[2], expected[2]) / allowed.gradient,
    )


def main() -> int:
    """Returns the exit status."""
    if jax.default_backend() != "gpu":
        print("sanitize.py: its kernels need a CUDA GPU, and JAX sees none", file=sys.stderr)
        return 1
    status = 0
    for case in cases():
        forward, gradient = errors(case)
        told = (
            f"{case[0]}: {forward:.2f} and {gradient:.2f} of what outputs and gradients may be off"
        )
        print(told, flush=True)
        if not (forward <= 1 and gradient <= 1):
            status = 1
    print("all is right" if status == 0 else "WRONG: see above")
    return status


if __name__ == "__main__":
    sys.exit(main())
