"""Cross entropy of resized logits in a Pallas kernel for CUDA GPUs."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from ...core import triton
from ...core.config import choose
from ...core.device import Device
from ..spec import ResizeCrossEntropySpec
from .config import Config, candidates, heuristic
from .kernels import launch

__all__ = ["PLATFORMS", "TUNED_AS", "Config", "candidates", "heuristic", "run", "supports"]

PLATFORMS = triton.PLATFORMS
TUNED_AS = "resize_cross_entropy.pallas_triton"

_FACTORS = (2, 32)
_MAX_CLASSES = 1024  # a program holds all logits of its pixels


def supports(spec: ResizeCrossEntropySpec, device: Device | None = None) -> str | None:
    """Returns the reason for which a call cannot be served.

    Logits must be bfloat16 or float32, of at most 1024 classes, and both of their sides a whole
    factor from 2 to 32 smaller than those of the labels.
    """
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"logits must be bfloat16 or float32, got {spec.dtype}"
    if not _FACTORS[0] <= spec.factor <= _FACTORS[1]:
        return (
            f"labels of {spec.height}x{spec.width} are not {_FACTORS[0]} to {_FACTORS[1]} times as "
            f"large as logits of {spec.rows}x{spec.columns}, by one whole factor"
        )
    if spec.classes > _MAX_CLASSES:
        return f"there must be at most {_MAX_CLASSES} classes, got {spec.classes}"
    if spec.batch == 0:
        return "there is nothing to launch for no images"
    # Up to four sums for each logit, and those of the border.
    if 4 * (spec.rows + 1) * (spec.columns + 2) * spec.classes >= 2**31:
        return f"logits of {spec.rows}x{spec.columns} are beyond its 32-bit indices"
    return triton.unsupported(device)


def run(
    spec: ResizeCrossEntropySpec,
    logits: Float[Array, "B h w K"],
    labels: UInt8[Array, "B H W"],
    *,
    config: Config | None = None,
) -> tuple[Float[Array, " B"], Float[Array, " B"], Float[Array, " B"]]:
    """Computes `kernels_pallas.resize_cross_entropy`."""
    call = _Call(spec, config or choose(TUNED_AS, Config, heuristic, spec))
    loss, hits = _entropy(call, logits, labels)
    return loss, hits, jnp.sum(spec.labelled(labels), axis=(1, 2), dtype=spec.wide)


class _Call(NamedTuple):
    """The static arguments."""

    spec: ResizeCrossEntropySpec
    config: Config


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _entropy(call: _Call, logits: Array, labels: Array) -> tuple[Array, Array]:
    loss, hits, _ = launch(call.spec, call.config.forward, logits, labels, gradient=False)
    return loss, hits


def _entropy_forward(
    call: _Call, logits: Array, labels: Array
) -> tuple[tuple[Array, Array], Array | None]:
    """Computes the gradient too, for cotangents of 1, as a sum's gradient is proportional."""
    loss, hits, gradient = launch(call.spec, call.config.gradient, logits, labels, gradient=True)
    return (loss, hits), gradient


def _entropy_backward(
    call: _Call, gradient: Array, cotangents: tuple[Array, Array]
) -> tuple[Array, None]:
    return (gradient * cotangents[0][:, None, None, None]).astype(call.spec.dtype), None


_entropy.defvjp(_entropy_forward, _entropy_backward, optimize_remat=True)
