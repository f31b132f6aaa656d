"""Gated linear attention by chunks of tokens in plain XLA: fast everywhere, exact for any decay.

Inside a chunk, blocks of tokens are merged pairwise, 1 + 1, 2 + 2, ... (README.md, "Derivation").
Every decay that occurs is a product of factors in [0, 1] over neighbouring tokens, so nothing can
overflow and nothing is divided or subtracted, in the gradients neither.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.gla.spec import GlaSpec

_CHUNK = 32


def supports(spec: GlaSpec) -> str | None:
    """Serves every call."""
    return None


def gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay: Float[Array, "B T H K"],
    initial_state: Float[Array, "B H K V"] | None,
) -> tuple[Float[Array, "B T H V"], Float[Array, "B H K V"]]:
    """One direction; see `kernels_pallas.gla.api.gla`."""
    directions = {spec.reverse: log_decay}
    out, states = _chunked(spec, q, k, v, directions, initial_state)
    return out, states[spec.reverse]


def bidirectional_gla(
    spec: GlaSpec,
    q: Float[Array, "B T H K"],
    k: Float[Array, "B T H K"],
    v: Float[Array, "B T H V"],
    log_decay_fwd: Float[Array, "B T H K"],
    log_decay_bwd: Float[Array, "B T H K"],
) -> Float[Array, "B T H V"]:
    """Both directions, summed; see `kernels_pallas.gla.api.bidirectional_gla`."""
    out, _ = _chunked(spec, q, k, v, {False: log_decay_fwd, True: log_decay_bwd}, None)
    return out


def _chunked(spec, q, k, v, log_decays, initial_state):
    """Runs the directions in `log_decays`, a dict from "reverse" to that scan's log-decays.

    Nothing but the inputs is kept for the backward pass, which starts by computing the rest again.
    """
    chunk = min(_CHUNK, 1 << (spec.tokens - 1).bit_length())
    chunks = -(-spec.tokens // chunk)

    def to_chunks(x):
        # A padded token has k = v = 0 and log-decay 0: it adds nothing and decays nothing.
        x = jnp.pad(x, ((0, 0), (0, chunks * chunk - spec.tokens), (0, 0), (0, 0)))
        x = x.reshape(spec.batch, chunks, chunk, spec.heads, x.shape[-1])
        return x.astype(spec.state_dtype).transpose(0, 3, 1, 2, 4)  # [B, H, N, C, K or V]

    @jax.checkpoint
    def run(q, k, v, log_decays, state):
        q, k, v = spec.scale * to_chunks(q), to_chunks(k), to_chunks(v)
        scores = len(log_decays) * jnp.sum(q * k, axis=-1)[..., None, None]  # [B, H, N, C, 1, 1]
        reads, finals, corners = [], {}, {}
        for reverse, log_decay in log_decays.items():
            decay = jnp.exp(to_chunks(log_decay))
            q_in, k_out, decay_chunk, corners[reverse] = _merge(spec, q, k, decay, reverse)
            update = _dot(spec, "bhnck,bhncv->nbhkv", k_out, v)
            start = jnp.zeros_like(update[0]) if state is None else state.astype(spec.state_dtype)
            finals[reverse], before = jax.lax.scan(
                lambda s, x: (x[0][..., None] * s + x[1], s),
                start,
                (jnp.moveaxis(decay_chunk, 2, 0), update),
                reverse=reverse,
            )
            reads.append(_dot(spec, "bhnck,nbhkv->bhncv", q_in, before))
        scores = _assemble(scores, corners)
        out = sum(reads) + _dot(spec, "bhnij,bhnjv->bhniv", scores, v)
        out = out.transpose(0, 2, 3, 1, 4).reshape(spec.batch, -1, spec.heads, spec.value_width)
        return out[:, : spec.tokens].astype(spec.dtype), finals

    return run(q, k, v, log_decays, initial_state)


def _merge(spec: GlaSpec, q: Any, k: Any, decay: Any, reverse: bool) -> tuple[Any, Any, Any, list]:
    """Merges blocks of one token pairwise until one block is left per chunk.

    Args:
        spec: The call.
        q: Scaled queries [B, H, N, C, K].
        k: Keys [B, H, N, C, K].
        decay: Decay factors [B, H, N, C, K].
        reverse: Direction of the scan.

    Returns:
        q with the decays from the chunk's start up to its token [B, H, N, C, K], k with the decays
        after its token up to the chunk's end [B, H, N, C, K], the chunk's decay [B, H, N, K], and
        per level, for width 1, 2, 4, ..., the scores of the later half's queries with the earlier
        half's keys [B, H, N, blocks, width, width].
    """
    early, late = (1, 0) if reverse else (0, 1)

    def join(early_half, late_half):
        halves = (late_half, early_half) if reverse else (early_half, late_half)
        return jnp.concatenate(halves, axis=4)

    q, k, total = (x[..., None, :] for x in (q * decay, k, decay))  # [B, H, N, C, 1, K]
    corners = []
    while q.shape[3] > 1:
        q, k, total = _halves(q), _halves(k), _halves(total)
        corners.append(_dot(spec, "bhnxik,bhnxjk->bhnxij", q[late], k[early]))
        q = join(q[early], total[early] * q[late])
        k = join(k[early] * total[late], k[late])
        total = total[early] * total[late]
    return q[:, :, :, 0], k[:, :, :, 0], total[:, :, :, 0, 0], corners


def _assemble(scores: Any, corners: dict[bool, list]) -> Any:
    """Scores [B, H, N, C, C] from the diagonal [B, H, N, C, 1, 1] and the corners of each level."""
    for level in range((scores.shape[3] - 1).bit_length()):
        first, second = _halves(scores)
        after = corners[True][level] if True in corners else jnp.zeros_like(first)
        before = corners[False][level] if False in corners else jnp.zeros_like(first)
        scores = jnp.block([[first, after], [before, second]])
    return scores[:, :, :, 0]


def _halves(x: Any) -> tuple[Any, Any]:
    """Even and odd blocks: [B, H, N, blocks, ...] to two of [B, H, N, blocks / 2, ...]."""
    return x[:, :, :, 0::2], x[:, :, :, 1::2]


def _dot(spec: GlaSpec, subscripts: str, x: Any, y: Any) -> Any:
    return jnp.einsum(subscripts, x, y, precision=spec.dot_precision)
