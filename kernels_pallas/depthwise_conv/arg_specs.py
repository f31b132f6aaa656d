"""Cases that tests, benchmarks and autotuning share."""

from typing import Any

from jax import ShapeDtypeStruct as Array

from ..core.arg_specs import MODEL, Case


def _case(name: str, shape: tuple[int, ...], *tags: str, activation: str | None = "silu") -> Case:
    args = {"x": Array(shape, "bfloat16"), "kernel": Array((3, 3, 1, shape[-1]), "bfloat16")}
    kwargs: dict[str, Any] = {"activation": activation}
    return Case(name, args, kwargs, tags=frozenset(tags))


CASES = (
    _case("vig_s", (256, 14, 14, 384), MODEL),
    _case("vig_t_1024", (16, 64, 64, 192), MODEL),
    _case("vig_h_t_stage1", (256, 56, 56, 96), MODEL, activation=None),
    _case("vig_h_t_stage4", (256, 7, 7, 768), MODEL, activation=None),
    # Images that share a tile, ragged columns and channels, whole tiles, maps of one row or column.
    _case("shared_tiles", (3, 5, 7, 5), activation=None),
    _case("whole_tiles", (2, 4, 8, 16)),
    _case("one_column", (1, 7, 1, 40), activation=None),
    _case("one_row", (2, 1, 9, 3)),
)
