"""Cases that tests, benchmarks and autotuning share."""

from typing import Any

from jax import ShapeDtypeStruct as Array

from ..core.arg_specs import MODEL, Case


def _case(name: str, shape: tuple[int, ...], size: int, stride: int, *tags: str, **kw: Any) -> Case:
    kwargs = {"kernel_size": size, "stride": stride, **kw}
    return Case(name, {"images": Array(shape, "bfloat16")}, kwargs, tags=frozenset(tags))


CASES = (
    _case("vig_stem", (256, 224, 224, 3), 9, 8, MODEL),
    _case("vig_stem_with_bias", (256, 224, 224, 3), 9, 8, MODEL, ones=True),
    _case("vig_h_stem", (256, 224, 224, 3), 3, 2, MODEL),
    # Even and odd sides, overlapping and separate positions, sides that the last position touches
    # and others that it does not, one position, a kernel beside the image.
    _case("stem", (2, 16, 24, 3), 9, 8),
    _case("ragged_stem", (1, 7, 31, 3), 9, 8, ones=True),
    _case("odd_sides", (2, 9, 14, 3), 3, 2, ones=True),
    _case("separate", (2, 5, 7, 1), 2, 3, columns=5, ones=True),
    _case("pixels", (1, 3, 4, 5), 1, 1, columns=37),
    _case("one_pixel", (3, 1, 1, 2), 3, 2),
    _case("overlapping", (1, 6, 9, 4), 4, 1, columns=64),
)
