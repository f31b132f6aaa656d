"""Gated linear attention in one direction with wide heads, in a Mosaic kernel for Hopper GPUs.

The kernel serves calls that are not differentiated. Under differentiation another implementation
serves the call.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import mosaic
from ...core.config import choose
from ...core.derivatives import differentiated_by
from ...core.device import Device
from .. import pallas_triton, xla_chunked
from ..spec import GlaSpec
from .config import (
    VALUES,
    Config,
    candidates,
    heuristic,
    programs,
)
from .kernels import forward

__all__ = [
    "PLATFORMS",
    "TUNED_AS",
    "Config",
    "candidates",
    "heuristic",
    "leads",
    "run",
    "supports",
]

PLATFORMS = mosaic.PLATFORMS
TUNED_AS = "gla.pallas_mosaic_gpu"

KEY_WIDTHS = (64, 128)
"""Key widths whose chunks fill tiles, and fit in the shared memory of a multiprocessor."""


def supports(spec: GlaSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served, or None."""
    if spec.bidirectional or spec.gate_normalizer is not None:
        return "it scans in one direction, with log-decays"
    if spec.sequences is not None:
        return "it takes rows of tokens that are one sequence each, no cu_seqlens"
    if spec.dtype != jnp.bfloat16:
        return f"q, k and v must be bfloat16, got {spec.dtype}"
    if spec.decay_dtype not in (jnp.bfloat16, jnp.float32):
        return f"log-decays must be bfloat16 or float32, got {spec.decay_dtype}"
    if spec.key_width not in KEY_WIDTHS or spec.value_width % VALUES:
        return (
            f"key width must be {' or '.join(map(str, KEY_WIDTHS))} and value width a multiple of "
            f"{VALUES}, got {spec.key_width} and {spec.value_width}"
        )
    if spec.tokens % mosaic.ROW_ALIGNMENT:
        return f"tokens must be a multiple of {mosaic.ROW_ALIGNMENT}, got {spec.tokens}"
    if spec.batch == 0:
        return "there is nothing to launch for an empty batch"
    return mosaic.unsupported(device)


def leads(spec: GlaSpec, device: Device) -> bool:
    """Returns whether it is faster than other implementations, as measured on an H200.

    That is so for keys of width 128 and programs on nearly all multiprocessors.
    """
    busy = programs(spec, heuristic(spec, device)) >= 0.9 * device.multiprocessors
    return supports(spec, device) is None and spec.key_width == 128 and busy


def run(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decays: tuple[Float[Array, "B T H K"], ...],
    initial_states: tuple[Float[Array, "B H K V"], ...] | None,
    cu_seqlens: None = None,
    *,
    config: Config | None = None,
) -> tuple[Float[Array, "B T H V"], tuple[Float[Array, "B H K V"], ...] | None]:
    """Computes the output and the final state; see `kernels_pallas.gla.api`."""
    config = config or choose(TUNED_AS, Config, heuristic, spec)
    if reason := config.unsuitable(spec):
        raise ValueError(f"gla: {config} does not suit the call: {reason}")
    return _attend(_Call(spec, config), q, k, v, log_decays, initial_states)


class _Call(NamedTuple):
    """The static arguments."""

    spec: GlaSpec
    config: Config


@differentiated_by(pallas_triton, xla_chunked)
def _attend(
    call: _Call,
    q: Array,
    k: Array,
    v: Array,
    log_decays: tuple[Array, ...],
    initial_states: tuple[Array, ...] | None,
) -> tuple[Array, tuple[Array, ...] | None]:
    (log_decay,) = log_decays
    initial_state = None if initial_states is None else initial_states[0]
    out, final_state = forward(call.spec, call.config, q, k, v, log_decay, initial_state)
    return out, None if final_state is None else (final_state,)
