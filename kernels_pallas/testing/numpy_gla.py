"""Gated linear attention by a loop in numpy, which shares no code with the operators."""

import numpy as np


def numpy_gla(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    log_decay: np.ndarray,
    initial_state: np.ndarray | None = None,
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
