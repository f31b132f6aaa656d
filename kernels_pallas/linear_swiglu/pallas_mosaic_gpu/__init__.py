"""A linear map with SwiGLU's gate in a Pallas Mosaic kernel for Hopper GPUs.

The kernel never writes the product to memory, and serves calls that are not differentiated. Under
differentiation another implementation serves the call, with the product in memory.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import mosaic
from ...core.config import choose
from ...core.derivatives import differentiated_by
from ...core.device import Device
from ...core.integers import cdiv
from ...core.launch import target_device
from .. import pallas_triton, xla
from ..spec import LinearSwigluSpec
from .config import (
    DEPTH,
    Config,
    candidates,
    heuristic,
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
TUNED_AS = "linear_swiglu.pallas_mosaic_gpu"


def supports(spec: LinearSwigluSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served.

    It must be bfloat16, with sizes that bulk copies allow.
    """
    if spec.dtype != jnp.bfloat16:
        return f"x and kernel must be bfloat16, got {spec.dtype}"
    if spec.features % DEPTH or spec.width % DEPTH:
        return f"D and I must be multiples of {DEPTH}, got {spec.features} and {spec.width}"
    if spec.rows == 0:
        return "there is nothing to launch for no rows"
    if spec.rows % mosaic.ROW_ALIGNMENT:
        return f"the number of rows must be a multiple of {mosaic.ROW_ALIGNMENT}, got {spec.rows}"
    if spec.rows > mosaic.MAX_ROWS:
        return f"there must be at most {mosaic.MAX_ROWS} rows"
    return mosaic.unsupported(device)


def leads(spec: LinearSwigluSpec, device: Device) -> bool:
    """Returns whether it is faster than other implementations, as measured on an H200.

    That is so for D from 384 to 768, where blocks of rows keep nearly all multiprocessors busy.
    """
    if supports(spec, device) is not None or not 384 <= spec.features <= 768:
        return False
    blocks = cdiv(spec.rows, heuristic(spec, device).rows)
    rounds = cdiv(blocks, device.multiprocessors)
    return blocks >= 0.9 * rounds * device.multiprocessors


def run(
    spec: LinearSwigluSpec,
    x: Float[Array, "... D"],
    kernel: Float[Array, "D X"],
    *,
    config: Config | None = None,
) -> Float[Array, "... I"]:
    """Computes `kernels_pallas.linear_swiglu`."""
    config = config or choose(TUNED_AS, Config, heuristic, spec)
    if reason := config.unsuitable(spec):
        raise ValueError(f"linear_swiglu: {config} does not suit the call: {reason}")
    call = _Call(spec, config)
    out = _linear_swiglu(call, x.reshape(spec.rows, spec.features), kernel)
    return out.reshape(*x.shape[:-1], spec.width)


class _Call(NamedTuple):
    """The static arguments."""

    spec: LinearSwigluSpec
    config: Config


def _multiprocessors() -> int:
    device = target_device()
    return mosaic.MULTIPROCESSORS if device is None else device.multiprocessors


@differentiated_by(pallas_triton, xla)
def _linear_swiglu(call: _Call, x: Array, kernel: Array) -> Array:
    return forward(call.spec, call.config, x, kernel, _multiprocessors())
