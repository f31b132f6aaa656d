"""The public operators: their definitions, their argument checks and their implementations."""

import numbers
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from . import (
    pallas_mosaic_gpu,
    pallas_triton,
    reference,
    xla_chunked,
    xla_unrolled,
)
from .exchange import Exchange, checked_exchange
from .sequences import checked_cu_seqlens
from .spec import GlaSpec

_TABLE = implementations(
    {
        "pallas_triton": pallas_triton,
        "pallas_mosaic_gpu": pallas_mosaic_gpu,
        "xla_chunked": xla_chunked,
        "xla_unrolled": xla_unrolled,
        "reference": reference,
    }
)

IMPLEMENTATIONS: tuple[str, ...] = tuple(_TABLE)
"""Names that `implementation=` accepts, best first."""

_CHECK_DECAY_VARIABLE = "KERNELS_PALLAS_CHECK_DECAY"


def gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H K"],
    *,
    scale: float | None = None,
    initial_state: Float[Array, "S H K V"] | None = None,
    reverse: bool = False,
    return_final_state: bool = False,
    min_log_decay: float | None = None,
    cu_seqlens: Int[Array | np.ndarray, " M"] | None = None,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> Float[Array, "B T H V"] | tuple[Float[Array, "B T H V"], Float[Array, "S H K V"]]:
    """Computes gated linear attention along the tokens, in one direction.

    For each image and head, with g_t = log_decay of token t::

        S_t = diag(exp(g_t)) S_{t-1} + k_t v_t^T        # [K, V]
        o_t = scale * q_t^T S_t                         # [V]

    The decay acts before the current token is added. So a token does not decay itself, and the
    decay of the first scanned token acts on `initial_state`.

    The operator is differentiable in every array. Kernels, and so the default under `jax.jit`, are
    differentiable once and in reverse mode; the other implementations any number of times and in
    both modes.

    Values must be finite, also those of padding (use zeros). The products of a chunk multiply by
    zero what a token must not see, so a NaN or an infinity in the v of a later token would reach
    it.

    Args:
        q: Queries; float32, bfloat16, float16 or float64.
        k: Keys, type of q.
        v: Values, type of q.
        log_decay: Natural logarithms of the decay factors, each in [-inf, 0]; any of the types
            above. Positive values are not allowed. With the environment variable
            KERNELS_PALLAS_CHECK_DECAY=1 they raise an error wherever values are known, that is
            outside of `jax.jit` and other transformations.
        scale: Factor on the queries, a Python number; K**-0.5 if None.
        initial_state: State before the first scanned token, any of the types above; zero if None.
            There are S = B of them, or S = N with `cu_seqlens`.
        reverse: Scan from the last token to the first: S_t is computed from S_{t+1}.
        return_final_state: Also return the state after the last scanned token.
        min_log_decay: A promise, a Python number: no log-decay is lower. Implementations may skip
            what only strong decays need; results are wrong if the promise is broken. It is checked
            where KERNELS_PALLAS_CHECK_DECAY=1 checks.
        cu_seqlens: Borders of N sequences that lie side by side in one row of tokens (B = 1), N + 1
            integers from 0 up, none smaller than the one before: sequence n has the tokens from
            cu_seqlens[n] to cu_seqlens[n + 1]. It may be empty. No state passes a border, whatever
            the decays. Tokens after the last border are one more sequence, which starts from zeros.
            Values are checked where they are known. None: each row is one sequence.
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.gla.IMPLEMENTATIONS`, or several names to try in order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        The output in the type of v; with `return_final_state` a pair of it and the final state of
        each row or sequence, which is float32 (float64 for float64 inputs). An empty sequence
        returns its initial state.

    Raises:
        TypeError: An argument is not an array or has a type not listed above, or the config does
            not belong to the implementation.
        ValueError: Shapes do not fit together, `cu_seqlens` are no borders of the tokens, or an
            implementation is unknown.
        NotImplementedError: The implementation that was named cannot serve this call.

    Source: "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024.
    """
    q, k, v, log_decay = _arrays({"q": q, "k": k, "v": v, "log_decay": log_decay})
    states = None if initial_state is None else {"initial_state": initial_state}
    out, finals = _attend(
        "gla",
        q,
        k,
        v,
        {"log_decay": log_decay},
        states,
        cu_seqlens,
        scale=scale,
        min_log_decay=min_log_decay,
        reverse=_flag("reverse", reverse),
        return_final_state=_flag("return_final_state", return_final_state),
        implementation=implementation,
        config=config,
    )
    return out if finals is None else (out, finals[0])


def bidirectional_gla(
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay_fwd: Float[Array, "B T H K"],
    log_decay_bwd: Float[Array, "B T H K"],
    *,
    scale: float | None = None,
    initial_states: tuple[Float[Array, "S H K V"], Float[Array, "S H K V"]] | None = None,
    return_final_states: bool = False,
    min_log_decay: float | None = None,
    cu_seqlens: Int[Array | np.ndarray, " M"] | None = None,
    exchange: Exchange | None = None,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> (
    Float[Array, "B T H V"]
    | tuple[Float[Array, "B T H V"], tuple[Float[Array, "S H K V"], Float[Array, "S H K V"]]]
):
    """Computes gated linear attention in both directions, each with its own decays.

    The result equals `gla(q, k, v, log_decay_fwd) + gla(q, k, v, log_decay_bwd, reverse=True)`. So
    the current token counts in both terms, and the sum is not halved.

    Args:
        q: Queries; float32, bfloat16, float16 or float64.
        k: Keys, type of q.
        v: Values, type of q.
        log_decay_fwd: Log-decays of the scan from first to last token, as in `gla`.
        log_decay_bwd: Log-decays of the scan from last to first token, type of log_decay_fwd.
        scale: As in `gla`.
        initial_states: The state before the first token for the scan from first to last token, and
            the state after the last token for the other scan, as in `gla`; zeros if None.
        return_final_states: Also return the final state of each scan: that after the last token,
            and that before the first.
        min_log_decay: As in `gla`, for both directions.
        cu_seqlens: As in `gla`, for both directions.
        exchange: Passes states between devices that hold consecutive parts of the tokens, such as
            the shards of `jax.shard_map`; see `kernels_pallas.gla.exchange.Exchange`. The result
            is this part of that for all tokens. It excludes the three arguments about states and
            sequences. None: the tokens are the whole sequence.
        implementation: As in `gla`.
        config: As in `gla`.

    Returns:
        The sum of both directions in the type of v; with `return_final_states` a pair of it and the
        pair of final states, as in `gla`.

    Raises:
        TypeError, ValueError, NotImplementedError: As in `gla`.

    Source: "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention", AAAI
    2025, "direction-wise gating".
    """
    named = {"q": q, "k": k, "v": v}
    named |= {"log_decay_fwd": log_decay_fwd, "log_decay_bwd": log_decay_bwd}
    q, k, v, log_decay_fwd, log_decay_bwd = _arrays(named)
    return_final_states = _flag("return_final_states", return_final_states)
    if exchange is not None:
        given = {
            "initial_states": initial_states is not None,
            "return_final_states": return_final_states,
            "cu_seqlens": cu_seqlens is not None,
        }
        if names := [name for name, is_given in given.items() if is_given]:
            raise ValueError(f"exchange excludes {', '.join(names)}: leave one of them out")
    states = None
    if initial_states is not None:
        if not isinstance(initial_states, tuple | list) or len(initial_states) != 2:
            raise TypeError(
                "initial_states must be a pair of arrays, one per direction, "
                f"got {type(initial_states).__name__}"
            )
        states = {f"initial_states[{i}]": state for i, state in enumerate(initial_states)}
    out, finals = _attend(
        "bidirectional_gla",
        q,
        k,
        v,
        {"log_decay_fwd": log_decay_fwd, "log_decay_bwd": log_decay_bwd},
        states,
        cu_seqlens,
        scale=scale,
        min_log_decay=min_log_decay,
        bidirectional=True,
        return_final_state=return_final_states,
        exchange=checked_exchange(exchange),
        implementation=implementation,
        config=config,
    )
    return out if finals is None else (out, (finals[0], finals[1]))


def _attend(
    op: str,
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decays: Mapping[str, jax.Array],
    states: Mapping[str, object] | None,
    cu_seqlens: object,
    *,
    implementation: str | Sequence[str] | None,
    config: Any,
    **facts: Any,
) -> tuple[jax.Array, tuple[jax.Array, ...] | None]:
    """Checks the arguments and runs an implementation.

    Returns the output, and the final state of each direction if the call returns them.
    """
    facts["min_log_decay"] = least = _least(facts["min_log_decay"])
    _check_shapes(q, k, v, log_decays, least)
    checked = None
    if cu_seqlens is not None:
        checked = checked_cu_seqlens(cu_seqlens, q.shape)
        facts["sequences"] = checked.shape[0] - 1
    spec = _spec(q, v, next(iter(log_decays.values())), has_initial_state=bool(states), **facts)
    arrays = None
    if states is not None:
        arrays = tuple(_arrays(states))
        _check_states(spec, dict(zip(states, arrays, strict=True)))
    return dispatch(
        op,
        spec,
        (q, k, v, tuple(log_decays.values()), arrays, checked),
        implementation=implementation,
        config=config,
        table=_TABLE,
    )


def _arrays(named: Mapping[str, object]) -> list[jax.Array]:
    return [checked_array(name, value) for name, value in named.items()]


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name} must be True or False, known when tracing, got {value!r}")
    return bool(value)


def _least(min_log_decay: object) -> float | None:
    if min_log_decay is None:
        return None
    if not isinstance(min_log_decay, numbers.Real):
        raise TypeError(
            f"min_log_decay must be a Python number or None, got {type(min_log_decay).__name__}"
        )
    if not min_log_decay <= 0:
        raise ValueError(f"min_log_decay must be at most 0, got {min_log_decay}")
    return float(min_log_decay)


def _check_shapes(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    log_decays: Mapping[str, jax.Array],
    least: float | None,
) -> None:
    for name, array in {"q": q, "k": k, "v": v, **log_decays}.items():
        if array.ndim != 4:
            raise ValueError(
                f"{name} must have four axes [batch, tokens, heads, width], got shape {array.shape}"
            )
        if 0 in array.shape[1:]:
            raise ValueError(
                f"{name} must have at least one token, head and channel, got {array.shape}"
            )
    for name, array in {"k": k, **log_decays}.items():
        if array.shape != q.shape:
            raise ValueError(f"{name} must have the shape of q, {q.shape}, got {array.shape}")
    if v.shape[:3] != q.shape[:3]:
        raise ValueError(
            f"v must share batch, tokens and heads with q, {q.shape[:3]}, got {v.shape[:3]} "
            "(the layout is [batch, tokens, heads, width])"
        )
    for name, array in {"k": k, "v": v}.items():
        if array.dtype != q.dtype:
            raise TypeError(f"{name} must have the type of q, {q.dtype}, got {array.dtype}: cast")
    first, *others = log_decays
    for name in others:
        if log_decays[name].dtype != log_decays[first].dtype:
            raise TypeError(
                f"{name} must have the type of {first}, {log_decays[first].dtype}, "
                f"got {log_decays[name].dtype}: cast"
            )
    if os.environ.get(_CHECK_DECAY_VARIABLE, "0") not in ("", "0"):
        for name, array in log_decays.items():
            if not isinstance(array, jax.core.Tracer) and not bool(jnp.all(array <= 0)):
                raise ValueError(
                    f"{name} must be in [-inf, 0], got a positive value or a NaN (largest: "
                    f"{float(jnp.max(array))}); pass logarithms of decay factors, "
                    "e.g. log_sigmoid(x)"
                )
            if not isinstance(array, jax.core.Tracer) and least is not None:
                lowest = float(jnp.min(array))
                if lowest < least:
                    raise ValueError(f"{name} goes down to {lowest}, below min_log_decay={least}")


def _check_states(spec: GlaSpec, states: Mapping[str, jax.Array]) -> None:
    count = "batch" if spec.sequences is None else "sequences"
    for name, state in states.items():
        if state.shape != spec.state_shape:
            raise ValueError(
                f"{name} must have shape [{count}, heads, key width, value width], "
                f"{spec.state_shape}, got {state.shape}"
            )


def _spec(
    q: jax.Array,
    v: jax.Array,
    log_decay: jax.Array,
    scale: Any,
    *,
    reverse: bool = False,
    bidirectional: bool = False,
    has_initial_state: bool = False,
    return_final_state: bool = False,
    min_log_decay: float | None = None,
    exchange: Exchange | None = None,
    sequences: int | None = None,
) -> GlaSpec:
    batch, tokens, heads, key_width = q.shape
    if scale is None:
        scale = key_width**-0.5
    elif not isinstance(scale, numbers.Real):
        raise TypeError(f"scale must be a Python number or None, got {type(scale).__name__}")
    return GlaSpec(
        batch=batch,
        tokens=tokens,
        heads=heads,
        key_width=key_width,
        value_width=v.shape[3],
        dtype=q.dtype,
        decay_dtype=log_decay.dtype,
        scale=float(scale),
        reverse=reverse,
        bidirectional=bidirectional,
        has_initial_state=has_initial_state,
        return_final_state=return_final_state,
        min_log_decay=min_log_decay,
        exchange=exchange,
        sequences=sequences,
    )
