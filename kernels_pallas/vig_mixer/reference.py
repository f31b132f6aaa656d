"""The definition: every step in float32 or wider, rounded once at the end."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..core.device import Device
from ..core.types import float32_or_wider
from ..gla import reference as gla
from .spec import MixerInputs, MixerSpec

PLATFORMS = None


def supports(spec: MixerSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def run(
    spec: MixerSpec, inputs: MixerInputs, cu_seqlens: Int[Array, " M"] | None = None
) -> Float[Array, "B T O"]:
    """Computes the mixer; see `kernels_pallas.vig_mixer.api.vig_mixer`."""
    wide = float32_or_wider(spec.dtype)
    wide_inputs = MixerInputs(*(x.astype(wide) for x in inputs))
    return compose(spec, gla.run, wide_inputs, cu_seqlens).astype(spec.dtype)


def compose(
    spec: MixerSpec,
    scan: Callable[..., tuple[Array, Any]],
    inputs: MixerInputs,
    cu_seqlens: Array | None,
) -> Float[Array, "B T O"]:
    """Computes the mixer with `scan`, an implementation of `gla`, in the type of `projected`."""

    def heads(x):
        return x.reshape(*x.shape[:2], spec.heads, x.shape[2] // spec.heads)

    def norm(x, scale):
        x = x.astype(wide)
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + spec.epsilon)
        return x * scale.astype(wide)

    dtype = inputs.projected.dtype
    wide = float32_or_wider(dtype)
    *parts, features = jnp.split(inputs.projected, list(spec.starts.values())[1:], axis=-1)
    q, k, v, gate = map(heads, parts)
    precision = spec.scan.dot_precision
    logits = jnp.dot(features, inputs.decay_kernel.astype(features.dtype), precision=precision)
    logits = logits.astype(wide) + inputs.decay_bias.astype(wide)
    log_decays = jax.nn.log_sigmoid(logits) / spec.gate_normalizer
    decays = [heads(x) for x in jnp.split(log_decays, 2, axis=-1)]
    scan_spec = dataclasses.replace(
        spec.scan, gate_normalizer=None, dtype=q.dtype, decay_dtype=decays[0].dtype
    )
    scanned, _ = scan(scan_spec, q, k, v, tuple(decays), None, cu_seqlens)
    mixed = norm(scanned, inputs.scan_scale)
    local = norm(heads(inputs.local), inputs.local_scale)
    gate_bias = inputs.gate_bias.astype(wide).reshape(spec.heads, -1)
    gate = jax.nn.sigmoid(gate.astype(wide) + gate_bias)
    out = local + gate * (mixed - local)
    out = jax.nn.silu(out) if spec.activation else out
    out = out.reshape(spec.batch, spec.tokens, spec.width).astype(dtype)
    return jnp.dot(out, inputs.out_kernel, precision=scan_spec.dot_precision)
