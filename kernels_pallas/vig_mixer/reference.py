"""The definition: every step in float32 or wider, rounded once at the end."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.gla import reference as gla
from kernels_pallas.vig_mixer.spec import MixerSpec


def supports(spec: MixerSpec) -> str | None:
    """Serves every call."""
    return None


def vig_mixer(
    spec: MixerSpec,
    projected: Float[Array, "B T E"],
    local: Float[Array, "B T D"],
    gate_bias: Float[Array, " D"],
    decay_kernel: Float[Array, "R D"],
    decay_bias: Float[Array, " D"],
    scan_scale: Float[Array, " V"],
    local_scale: Float[Array, " V"],
    out_kernel: Float[Array, "D O"],
) -> Float[Array, "B T O"]:
    """See `kernels_pallas.vig_mixer.api.vig_mixer`."""
    wide = jnp.promote_types(spec.dtype, jnp.float32)
    weights = (gate_bias, decay_kernel, decay_bias, scan_scale, local_scale, out_kernel)
    arrays = [x.astype(wide) for x in (projected, local, *weights)]
    return compose(spec, gla.bidirectional_gla, *arrays).astype(spec.dtype)


def compose(
    spec: MixerSpec,
    scan: Callable[..., Any],
    projected: Any,
    local: Any,
    gate_bias: Any,
    decay_kernel: Any,
    decay_bias: Any,
    scan_scale: Any,
    local_scale: Any,
    out_kernel: Any,
) -> Any:
    """The mixer in terms of a bidirectional scan, in the type of `projected`."""

    def heads(x):
        return x.reshape(*x.shape[:2], spec.heads, x.shape[2] // spec.heads)

    def norm(x, scale):
        x = x.astype(wide)
        return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + spec.epsilon) * scale

    wide = jnp.promote_types(projected.dtype, jnp.float32)
    *parts, features = jnp.split(projected, list(spec.starts.values())[1:], axis=-1)
    q, k, v, gate = map(heads, parts)
    precision = spec.scan.dot_precision
    logits = jnp.dot(features, decay_kernel.astype(features.dtype), precision=precision)
    log_decays = jax.nn.log_sigmoid(logits.astype(wide) + decay_bias) / spec.gate_normalizer
    decays = [heads(x) for x in jnp.split(log_decays, 2, axis=-1)]
    scan_spec = dataclasses.replace(
        spec.scan, gate_normalizer=None, dtype=q.dtype, decay_dtype=decays[0].dtype
    )
    mixed = norm(scan(scan_spec, q, k, v, *decays), scan_scale)
    local = norm(heads(local), local_scale)
    gate = jax.nn.sigmoid(gate.astype(wide) + gate_bias.reshape(spec.heads, -1))
    out = local + gate * (mixed - local)
    out = jax.nn.silu(out) if spec.activation else out
    out = out.reshape(spec.batch, spec.tokens, spec.width).astype(projected.dtype)
    return jnp.dot(out, out_kernel, precision=scan_spec.dot_precision)
