"""Cases that tests, benchmarks and autotuning share."""

import numpy as np
from jax import ShapeDtypeStruct as Array

from ..core.arg_specs import MODEL, Case


def _weights(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draws weights whose products with normal inputs have a deviation of 1.5."""
    return 1.5 * shape[0] ** -0.5 * generator.standard_normal(shape)


def _case(
    name: str,
    rows: tuple[int, ...],
    features: int,
    width: int,
    outputs: int,
    *tags: str,
    dtype: str = "bfloat16",
) -> Case:
    args = {
        "x": Array((*rows, features), dtype),
        "kernel": Array((features, 2 * width), dtype),
        "down_kernel": Array((width, outputs), dtype),
    }
    draws = {"kernel": _weights, "down_kernel": _weights}
    return Case(name, args, draws=draws, tags=frozenset(tags))


CASES = (
    _case("vig_t", (256, 196), 192, 512, 192, MODEL),
    _case("vig_s", (256, 196), 384, 1024, 384, MODEL),
    _case("vig_b", (256, 196), 768, 2048, 768, MODEL),
    _case("vig_h_t_stage1", (256, 56, 56), 96, 256, 96, MODEL),
    _case("vig_h_b_stage1", (256, 56, 56), 128, 352, 128, MODEL),
    _case("vig_h_b_stage4", (256, 7, 7), 1024, 2752, 1024, MODEL),
    _case("ragged", (2, 35), 32, 48, 5),
    _case("tiles", (2, 68), 64, 128, 40),
    _case("vector", (), 16, 16, 24),
    _case("odd_widths", (2, 3), 12, 10, 7, dtype="float32"),
)
