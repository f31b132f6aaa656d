"""The pixels under a kernel in a Pallas kernel for CUDA GPUs."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.config import choose
from ...core.device import Device
from .. import xla
from ..spec import Im2colSpec
from .config import Config, candidates, heuristic
from .kernels import forward

__all__ = ["PLATFORMS", "TUNED_AS", "Config", "candidates", "heuristic", "run", "supports"]

PLATFORMS = triton.PLATFORMS
TUNED_AS = "im2col.pallas_triton"


def supports(spec: Im2colSpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served.

    Images must be bfloat16 or float32, of less than 2**31 numbers each.
    """
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"images must be bfloat16 or float32, got {spec.dtype}"
    if spec.batch == 0:
        return "there is nothing to launch for no images"
    h, w = spec.positions
    # Indices of what is masked may overflow, they are not used.
    if max(spec.height * spec.width * spec.channels, h * w * spec.columns) >= 2**31:
        return f"images of {spec.height}x{spec.width} are beyond its 32-bit indices"
    return triton.unsupported(device)


def run(
    spec: Im2colSpec, images: Float[Array, "B H W C"], *, config: Config | None = None
) -> Float[Array, "B h w X"]:
    """Computes `kernels_pallas.im2col`."""
    return _im2col(_Call(spec, config or choose(TUNED_AS, Config, heuristic, spec)), images)


class _Call(NamedTuple):
    """The static arguments."""

    spec: Im2colSpec
    config: Config


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _im2col(call: _Call, images: Array) -> Array:
    return forward(call.spec, call.config, images)


def _im2col_forward(call: _Call, images: Array) -> tuple[Array, None]:
    return _im2col(call, images), None


def _im2col_backward(call: _Call, _: None, grad_out: Array) -> tuple[Array]:
    """Transposes XLA's form: the operator is linear, and its gradient rarely needed."""
    spec = dataclasses.replace(call.spec, ones=False)
    shape = (spec.batch, spec.height, spec.width, spec.channels)
    images = jax.ShapeDtypeStruct(shape, spec.dtype)
    return tuple(jax.linear_transpose(functools.partial(xla.run, spec), images)(grad_out))


# Without optimize_remat: the forward pass keeps no residuals, so there is nothing to save under
# jax.checkpoint, and the operator stays differentiable twice.
_im2col.defvjp(_im2col_forward, _im2col_backward)
