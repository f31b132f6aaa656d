"""Gated linear attention by a loop in numpy, which shares no code with the operators."""

import numpy as np
from jax.typing import ArrayLike


def numpy_gla(
    q: ArrayLike,
    k: ArrayLike,
    v: ArrayLike,
    log_decay: ArrayLike,
    initial_state: ArrayLike | None = None,
    *,
    reverse: bool = False,
    scale: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Computes the output and the final state of `kernels_pallas.gla` in float64."""
    q, k, v, log_decay = (np.asarray(x, np.float64) for x in (q, k, v, log_decay))
    batch, tokens, heads, width = q.shape
    state = np.zeros((batch, heads, width, v.shape[3]))
    if initial_state is not None:
        state = np.asarray(initial_state, np.float64)
    out = np.empty(v.shape)
    for t in range(tokens)[:: -1 if reverse else 1]:
        state = np.exp(log_decay[:, t, :, :, None]) * state
        state = state + k[:, t, :, :, None] * v[:, t, :, None, :]
        out[:, t] = (q[:, t, :, :, None] * state).sum(axis=2)
    return out * (width**-0.5 if scale is None else scale), state
