"""Cases that tests, benchmarks and autotuning share."""

import numpy as np
from jax import ShapeDtypeStruct as Array

from ..core.arg_specs import MODEL, Case


def _weights(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Draws weights whose products with normal inputs have a deviation of 2."""
    return 2 * shape[0] ** -0.5 * generator.standard_normal(shape)


def _case(
    name: str, rows: tuple[int, ...], features: int, width: int, *tags: str, dtype: str = "bfloat16"
) -> Case:
    args = {"x": Array((*rows, features), dtype), "kernel": Array((features, 2 * width), dtype)}
    return Case(name, args, draws={"kernel": _weights}, tags=frozenset(tags))


CASES = (
    _case("vig_t", (256, 196), 192, 512, MODEL),
    _case("vig_s", (256, 196), 384, 1024, MODEL),
    _case("vig_b", (256, 196), 768, 2048, MODEL),
    _case("vig_h_t_stage1", (256, 56, 56), 96, 256, MODEL),
    _case("vig_h_b_stage1", (256, 56, 56), 128, 352, MODEL),
    _case("vig_h_b_stage4", (256, 7, 7), 1024, 2752, MODEL),
    _case("ragged", (2, 35), 48, 80),
    _case("tiles", (2, 140), 192, 192),
    _case("few_rows", (3,), 16, 16),
    _case("vector", (), 16, 16),
    _case("odd_widths", (2, 3), 12, 10, dtype="float32"),
    _case("one_feature", (5,), 1, 1, dtype="float32"),
)
