"""Gated linear attention token by token: the definition every implementation is compared with.

Source: "Gated Linear Attention Transformers with Hardware-Efficient Training", ICML 2024, eq. 3;
two directions as in "ViG: Linear-complexity Visual Sequence Learning with Gated Linear Attention",
AAAI 2025.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core.device import Device
from kernels_pallas.gla.spec import GlaSpec

PLATFORMS = None


def supports(spec: GlaSpec, device: Device | None = None) -> str | None:
    """Returns None: it serves every call."""
    return None


def _scan(spec, q, k, v, log_decay, state, reverse):
    def step(state, token):
        q, k, v, log_decay = token  # [B, H, K], [B, H, K], [B, H, V], [B, H, K]
        state = jnp.exp(log_decay)[..., None] * state + k[..., None] * v[..., None, :]
        out = jnp.einsum("bhk,bhkv->bhv", spec.scale * q, state, precision="highest")
        return state, out

    tokens = [jnp.moveaxis(x.astype(spec.state_dtype), 1, 0) for x in (q, k, v, log_decay)]
    if state is None:
        shape = (spec.batch, spec.heads, spec.key_width, spec.value_width)
        state = jnp.zeros(shape, spec.state_dtype)
    state = state.astype(spec.state_dtype)
    state, out = jax.lax.scan(step, state, tokens, reverse=reverse)
    return jnp.moveaxis(out, 0, 1), state


def gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H K"],
    initial_state: Float[Array, "B H K V"] | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"] | None]:
    """One direction; see `kernels_pallas.gla.api.gla`."""
    out, state = _scan(spec, q, k, v, log_decay, initial_state, spec.reverse)
    return out.astype(spec.dtype), state if spec.return_final_state else None


def bidirectional_gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay_fwd: Float[Array, "B T H K"],
    log_decay_bwd: Float[Array, "B T H K"],
) -> Float[Array, "B T H V"]:
    """Both directions, summed; see `kernels_pallas.gla.api.bidirectional_gla`."""
    forward, _ = _scan(spec, q, k, v, log_decay_fwd, None, reverse=False)
    backward, _ = _scan(spec, q, k, v, log_decay_bwd, None, reverse=True)
    return (forward + backward).astype(spec.dtype)
