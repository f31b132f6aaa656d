"""The public operator: its definition, its argument checks and its implementations."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..core.checks import checked_array
from ..core.dispatch import dispatch, implementations
from ..gla.exchange import Exchange, checked_exchange
from ..gla.sequences import checked_cu_seqlens
from ..gla.spec import MAX_GATE_NORMALIZER
from . import pallas_triton, reference, xla_chunked, xla_unrolled
from .spec import MixerInputs, MixerSpec

_TABLE = implementations(
    {
        "pallas_triton": pallas_triton,
        "xla_chunked": xla_chunked,
        "xla_unrolled": xla_unrolled,
        "reference": reference,
    }
)

IMPLEMENTATIONS: tuple[str, ...] = tuple(_TABLE)
"""Names that `implementation=` accepts, best first."""


def vig_mixer(
    projected: Float[Array, "B T E"],
    local: Float[Array, "B T D"],
    gate_bias: Float[Array, " D"],
    decay_kernel: Float[Array, "R D"],
    decay_bias: Float[Array, " D"],
    scan_scale: Float[Array, " V"],
    local_scale: Float[Array, " V"],
    out_kernel: Float[Array, "D O"],
    *,
    heads: int,
    scale: float | None = None,
    gate_normalizer: float = 16.0,
    epsilon: float = 1e-6,
    activation: str | None = None,
    cu_seqlens: Int[Array | np.ndarray, " M"] | None = None,
    exchange: Exchange | None = None,
    implementation: str | Sequence[str] | None = None,
    config: Any = None,
) -> Float[Array, "B T O"]:
    """Computes bidirectional GLA, blends it with the local map and projects the blend.

    `projected` holds side by side, with all heads of each: the queries (D/2 channels), the keys
    (D/2), the values (D), the logits of the blending gate (D), and R features for the decays. With
    K = D / 2H and V = D / H channels per head::

        d_fwd, d_bwd = split(features @ decay_kernel + decay_bias)
        o = bidirectional_gla(q, k, v, log_sigmoid(d_fwd) / normalizer, log_sigmoid(d_bwd) / ..)
        g = sigmoid(gate + gate_bias)
        z = g * rms_norm(o, scan_scale) + (1 - g) * rms_norm(local, local_scale)
        out = z @ out_kernel

    The norms are over the channels of a head. On CUDA GPUs the kernels read their inputs from
    `projected` in place and write its gradient as one array, and the backward pass recomputes z.
    Differentiable in every array.

    Args:
        projected: Linear maps of `local`; float32, bfloat16, float16 or float64.
        local: The local map, type of `projected`.
        gate_bias: Added to the logits of the blending gate.
        decay_kernel: Maps the features to the logits of the decays, type of `projected`.
        decay_bias: Added to the logits of the decays.
        scan_scale: Weights of the norm of the scan, shared by all heads.
        local_scale: Weights of the norm of the local map.
        out_kernel: Weights of the output's linear map, type of `projected`.
        heads: H; D must be a multiple of 2 H.
        scale: Factor on the queries, a Python number; K**-0.5 if None.
        gate_normalizer: Divides the log-sigmoid; above 0 and at most 256.
        epsilon: Added to the mean square in both norms.
        activation: "silu" to use z * sigmoid(z) in place of z, or None.
        cu_seqlens: As in `kernels_pallas.gla`, for several sequences in one row of tokens.
        exchange: As in `kernels_pallas.bidirectional_gla`, for parts of the tokens.
        implementation: None for the best one on the platform that the program is lowered for, a
            name in `kernels_pallas.vig_mixer.IMPLEMENTATIONS`, or several names to try in order.
        config: A config of the implementation, such as `kernels_pallas.autotune` returns; None for
            its own choice.

    Returns:
        An array [B, T, O], type of `projected`.

    Raises:
        TypeError: An argument is not an array, or has a type that is not listed above or is not
            that of `projected`, or the config does not belong to the implementation.
        ValueError: Shapes do not fit together, or a setting is out of its range.
        NotImplementedError: The implementation that was named cannot serve this call.

    Source: "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention", AAAI
    2025, section 3; hustvl/ViG `classification/models/vig.py`.
    """
    inputs = MixerInputs(
        projected=checked_array("projected", projected),
        local=checked_array("local", local),
        gate_bias=checked_array("gate_bias", gate_bias),
        decay_kernel=checked_array("decay_kernel", decay_kernel),
        decay_bias=checked_array("decay_bias", decay_bias),
        scan_scale=checked_array("scan_scale", scan_scale),
        local_scale=checked_array("local_scale", local_scale),
        out_kernel=checked_array("out_kernel", out_kernel),
    )
    spec = _spec(inputs, heads, scale, gate_normalizer, epsilon, activation)
    spec = dataclasses.replace(spec, exchange=checked_exchange(exchange))
    borders = None
    if cu_seqlens is not None:
        if exchange is not None:
            raise ValueError("exchange excludes cu_seqlens: leave one of them out")
        borders = checked_cu_seqlens(cu_seqlens, inputs.projected.shape)
        spec = dataclasses.replace(spec, sequences=borders.shape[0] - 1)
    return dispatch(
        "vig_mixer",
        spec,
        (inputs, borders),
        implementation=implementation,
        table=_TABLE,
        config=config,
    )


def _check_shapes(inputs: MixerInputs, heads: int) -> None:
    local, decay_kernel, out_kernel = inputs.local, inputs.decay_kernel, inputs.out_kernel
    if local.ndim != 3 or 0 in local.shape[1:]:
        raise ValueError(f"local must have shape [B, T, D], got {local.shape}")
    if decay_kernel.ndim != 2 or 0 in decay_kernel.shape:
        raise ValueError(f"decay_kernel must have shape [R, D], got {decay_kernel.shape}")
    batch, tokens, width = local.shape
    rank = decay_kernel.shape[0]
    if heads < 1 or width % (2 * heads):
        raise ValueError(f"width {width} must be a multiple of 2 * heads ({2 * heads})")
    shapes = {
        "projected": (batch, tokens, 3 * width + rank),
        "decay_kernel": (rank, width),
        "gate_bias": (width,),
        "decay_bias": (width,),
        "scan_scale": (width // heads,),
        "local_scale": (width // heads,),
    }
    for name, shape in shapes.items():
        if getattr(inputs, name).shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {getattr(inputs, name).shape}")
    if out_kernel.ndim != 2 or out_kernel.shape[0] != width or out_kernel.shape[1] == 0:
        raise ValueError(
            f"out_kernel must have shape [D, O] for the D = {width} channels of local, "
            f"got {out_kernel.shape}"
        )


def _spec(
    inputs: MixerInputs,
    heads: int,
    scale: Any,
    gate_normalizer: float,
    epsilon: float,
    activation: str | None,
) -> MixerSpec:
    """Returns the spec of a call.

    Raises:
        TypeError: Types of arrays differ, or a setting is no number.
        ValueError: Shapes do not fit together, or a setting is out of its range.
    """
    _check_shapes(inputs, heads)
    types = [x.dtype for x in (inputs.projected, inputs.local, inputs.decay_kernel)]
    types.append(inputs.out_kernel.dtype)
    if len(set(types)) > 1:
        raise TypeError(
            "projected, local, decay_kernel and out_kernel must be of one type, "
            f"got {', '.join(map(str, types))}: cast"
        )
    if not 0 < gate_normalizer <= MAX_GATE_NORMALIZER:
        raise ValueError(
            f"gate_normalizer must be in (0, {MAX_GATE_NORMALIZER:g}], got {gate_normalizer}"
        )
    if activation not in (None, "silu"):
        raise ValueError(f'activation must be "silu" or None, got {activation!r}')
    batch, tokens, width = inputs.local.shape
    if scale is None:
        scale = (width // heads // 2) ** -0.5
    elif not isinstance(scale, numbers.Real):
        raise TypeError(f"scale must be a Python number or None, got {type(scale).__name__}")
    return MixerSpec(
        batch=batch,
        tokens=tokens,
        heads=heads,
        width=width,
        rank=inputs.decay_kernel.shape[0],
        out_features=inputs.out_kernel.shape[1],
        dtype=jnp.dtype(inputs.projected.dtype),
        scale=float(scale),
        gate_normalizer=float(gate_normalizer),
        epsilon=float(epsilon),
        activation=activation,
    )
