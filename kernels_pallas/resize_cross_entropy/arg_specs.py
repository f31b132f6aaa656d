"""Cases that tests, benchmarks and autotuning share."""

import numpy as np
from jax import ShapeDtypeStruct as Array

from ..core.arg_specs import MODEL, Case, Draw


def _labels(classes: int) -> Draw:
    """Draws classes, and 255 for about one pixel of ten."""

    def draw(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        labels = generator.integers(0, classes, shape)
        return np.where(generator.random(shape) < 0.1, 255, labels)

    return draw


def _case(
    name: str, logits: tuple[int, ...], size: tuple[int, int], *tags: str, **kwargs: int
) -> Case:
    args = {
        "logits": Array(logits, "bfloat16"),
        "labels": Array((logits[0], *size), "uint8"),
    }
    draws = {"labels": _labels(logits[-1])}
    return Case(name, args, kwargs, draws, frozenset(tags), frozenset(args))


CASES = (
    # UperNet's two heads at 512 x 512: on one device, and of a larger batch on eight.
    _case("decode", (16, 128, 128, 150), (512, 512), MODEL),
    _case("auxiliary", (16, 32, 32, 150), (512, 512), MODEL),
    _case("decode_2", (2, 128, 128, 150), (512, 512), MODEL),
    _case("auxiliary_2", (2, 32, 32, 150), (512, 512), MODEL),
    # Unequal sides, a factor of 16, a factor that is no power of two and ignored classes, an odd
    # factor, one pixel, two classes; factors that are not whole, an axis that shrinks.
    _case("factor_4", (2, 3, 5, 11), (12, 20)),
    _case("factor_16", (1, 1, 2, 37), (16, 32)),
    _case("factor_6", (1, 3, 2, 5), (18, 12), ignore=2),
    _case("factor_3", (2, 3, 2, 5), (9, 6)),
    _case("one_pixel", (2, 1, 1, 3), (2, 2)),
    _case("two_classes", (1, 2, 2, 2), (16, 16)),
    _case("broken_factor", (2, 3, 5, 7), (7, 11)),
    _case("shrinks", (1, 9, 4, 4), (5, 8)),
    _case("camvid", (2, 16, 16, 11), (64, 64)),
)
