"""Cases that tests, benchmarks and autotuning share."""

from jax import ShapeDtypeStruct as Array

from ..core.arg_specs import MODEL, Case, normal


def _case(name: str, *shape: int, tags: frozenset[str] = frozenset()) -> Case:
    """Makes a case of an output shape; gates reach several units either side of 0."""
    x = Array((*shape[:-1], 2 * shape[-1]), "bfloat16")
    return Case(name, {"x": x}, draws={"x": normal(2.0)}, tags=tags)


CASES = (
    _case("vig_t", 256, 196, 512, tags=frozenset({MODEL})),
    _case("vig_s", 256, 196, 1024, tags=frozenset({MODEL})),
    _case("vig_b", 256, 196, 2048, tags=frozenset({MODEL})),
    _case("vig_h_t_stage1", 256, 56, 56, 256, tags=frozenset({MODEL})),
    _case("vig_h_b_stage4", 256, 49, 2752, tags=frozenset({MODEL})),
    _case("two_blocks", 4, 300),
    _case("odd_width", 33, 7),
    _case("one_output", 1, 1),
    _case("vector", 96),
)
