"""Cases that tests, benchmarks and autotuning share: of `norm_act`, and of `residual_norm`."""

from typing import Any

import numpy as np
from jax import ShapeDtypeStruct as Array

from ..core.arg_specs import MODEL, Case, normal

_DRAWS = {"x": normal(mean=0.5), "scale": normal(0.5, mean=1.0)}
# Large, so that the gradients of one or two channels do not cancel altogether.
_EPSILON = 0.3


def _keep(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns 0, 0.75, 1.5, 0, 0.75 and so on."""
    return np.arange(shape[0]) % 3 * 0.75


def _norm(
    name: str,
    shape: tuple[int, ...],
    kind: str,
    *tags: str,
    bias: bool = True,
    activation: str | None = None,
) -> Case:
    args = {"x": Array(shape, "bfloat16"), "scale": Array(shape[-1:], "float32")}
    if bias:
        args["bias"] = Array(shape[-1:], "float32")
    kwargs: dict[str, Any] = {"kind": kind, "epsilon": _EPSILON, "activation": activation}
    return Case(name, args, kwargs, _DRAWS, frozenset(tags))


def _residual(
    name: str, shape: tuple[int, ...], kind: str, *tags: str, bias: bool = True, keep: bool = False
) -> Case:
    args = {"x": Array(shape, "bfloat16"), "branch": Array(shape, "bfloat16")}
    args["scale"] = Array(shape[-1:], "float32")
    if bias:
        args["bias"] = Array(shape[-1:], "float32")
    if keep:
        args["keep"] = Array(shape[:1], "float32")
    kwargs = {"kind": kind, "epsilon": _EPSILON}
    batched = frozenset({"x", "branch", "keep"})
    return Case(name, args, kwargs, {**_DRAWS, "keep": _keep}, frozenset(tags), batched)


NORM_CASES = (
    _norm("vig_t", (256, 14, 14, 192), "rms", MODEL, bias=False),
    _norm("vig_s", (256, 14, 14, 384), "rms", MODEL, bias=False),
    _norm("vig_h_stem", (256, 112, 112, 48), "layer", MODEL, activation="gelu"),
    _norm("vig_h_b_stage4", (256, 7, 7, 1024), "layer", MODEL),
    # A width of three quarters of a power of two, an odd one, one that is wider than a warp holds,
    # and a single channel.
    _norm("three_parts", (2, 7, 96), "layer", activation="gelu"),
    _norm("odd_width", (37, 33), "rms", bias=False, activation="silu"),
    _norm("wide", (3, 2051), "layer", bias=False),
    _norm("one_channel", (2, 1), "rms"),
)

RESIDUAL_CASES = (
    _residual("vig_s", (256, 14, 14, 384), "rms", MODEL, bias=False),
    _residual("vig_s_drop_path", (256, 14, 14, 384), "rms", MODEL, bias=False, keep=True),
    _residual("vig_h_t_stage1", (256, 56, 56, 96), "layer", MODEL),
    _residual("dropped", (3, 7, 50), "layer", keep=True),
    _residual("rms_dropped", (4, 2, 24), "rms", bias=False, keep=True),
    _residual("odd_width", (2, 5, 33), "rms", bias=False),
)
