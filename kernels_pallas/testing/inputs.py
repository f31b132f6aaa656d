"""Random inputs of gated linear attention with several kinds of decays."""

from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ..core.arg_specs import on_device

GATE_KINDS: tuple[str, ...] = ("typical", "mild", "strong", "none", "reset", "mixed")
"""Kinds of log-decays that `random_inputs` makes."""


class Inputs(NamedTuple):
    """Arguments of `gla` and `bidirectional_gla`, and a cotangent for their output."""

    q: Float[Array, "B T H K"]
    k: Float[Array, "B T H K"]
    v: Float[Array, "B T H V"]
    log_decay_fwd: Float[Array, "B T H K"]
    log_decay_bwd: Float[Array, "B T H K"]
    initial_state: Float[Array, "B H K V"]
    cotangent: Float[Array, "B T H V"]


def random_inputs(
    seed: int,
    *,
    batch: int,
    tokens: int,
    heads: int,
    key_width: int,
    value_width: int,
    gates: str = "typical",
    dtype: str = "float32",
    decay_dtype: str | None = None,
) -> Inputs:
    """Draws arguments for `gla` and `bidirectional_gla`.

    Args:
        seed: Of numpy's default generator.
        batch: B.
        tokens: T.
        heads: H.
        key_width: K.
        value_width: V.
        gates: Kind of log-decays: "typical" as a ViG layer makes them, log_sigmoid(x) / 16;
            "mild" uniform in [-1, 0]; "strong" uniform in [-20, 0]; "none" within 1e-7 of 0;
            "reset" nothing but a -20 every 7th and a -inf every 11th token; "mixed" one of -inf,
            -20, -1e-8, 0 or typical, drawn for each token and channel.
        dtype: Of q, k, v and the cotangent.
        decay_dtype: Of the log-decays; float64 for float64 inputs, else float32, if None.

    Returns:
        Standard normal arrays, the initial state float32 (float64 for float64), and log-decays.

    Raises:
        ValueError: `gates` is not one of GATE_KINDS.
    """
    generator = np.random.default_rng(seed)
    keys = (batch, tokens, heads, key_width)
    values = (batch, tokens, heads, value_width)
    wide = "float64" if dtype == "float64" else "float32"

    def normal(shape: tuple[int, ...], dtype: str) -> jax.Array:
        return on_device(generator.standard_normal(shape), dtype)

    def log_decay() -> jax.Array:
        return on_device(draw_log_decays(generator, keys, gates), decay_dtype or wide)

    return Inputs(
        q=normal(keys, dtype),
        k=normal(keys, dtype),
        v=normal(values, dtype),
        log_decay_fwd=log_decay(),
        log_decay_bwd=log_decay(),
        initial_state=normal((batch, heads, key_width, value_width), wide),
        cotangent=normal(values, dtype),
    )


def draw_log_decays(
    generator: np.random.Generator, shape: tuple[int, ...], gates: str
) -> np.ndarray:
    """Draws log-decays [B, T, H, K] of a kind: see `random_inputs`."""
    typical = -np.logaddexp(0.0, -2.0 * generator.standard_normal(shape)) / 16
    none = -1e-7 * generator.random(shape)
    if gates == "typical":
        return typical
    if gates == "mild":
        return -generator.random(shape)
    if gates == "strong":
        return -20.0 * generator.random(shape)
    if gates == "none":
        return none
    if gates == "reset":
        token = np.arange(shape[1])[None, :, None, None]
        return np.where(token % 11 == 10, -np.inf, np.where(token % 7 == 6, -20.0, none))
    if gates == "mixed":
        kind = generator.integers(0, 6, shape)
        return np.select([kind == i for i in range(4)], [-np.inf, -20.0, -1e-8, 0.0], typical)
    raise ValueError(f"unknown kind of gates {gates!r} (known: {', '.join(GATE_KINDS)})")
