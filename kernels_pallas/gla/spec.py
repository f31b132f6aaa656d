"""Static facts of a call of gated linear attention, known before the values of arrays are."""

import dataclasses
from collections.abc import Hashable

import jax
import jax.numpy as jnp
import numpy as np

from ..core.types import Dim
from .exchange import Exchange

MAX_GATE_NORMALIZER = 256.0
"""Largest gate normalizer: a gate that is closed stays closed after the division by it."""


@dataclasses.dataclass(frozen=True)
class GlaSpec:
    """Static facts of a call, by which an implementation decides whether it can serve it.

    Attributes:
        batch: Images or sequences B.
        tokens: Sequence length T, at least 1.
        heads: Heads H.
        key_width: Width K of queries, keys and decays per head.
        value_width: Width V of values and outputs per head.
        dtype: Type of q, k, v and of the output.
        decay_dtype: Type of the log-decays.
        scale: Factor on the queries.
        reverse: A single scan runs from the last token to the first.
        bidirectional: The result is the sum of both scans. Then `reverse` is False.
        has_initial_state: Each scan starts from a given state.
        return_final_state: The state after the last scanned token of each scan is returned.
        min_log_decay: A promise that no log-decay is lower, or None.
        gate_normalizer: If given, the log-decays are log_sigmoid(x) / gate_normalizer of gates x.
            The public operators take log-decays, so it is None for them.
        exchange: The tokens are a part of a sequence, and both scans start from the states that
            this function receives from other parts. None: they are the whole sequence.
        sequences: Number N of sequences that lie side by side in the tokens; then the batch is 1,
            and an array of borders is given. None: each row of tokens is one sequence.
    """

    batch: Dim
    tokens: int
    heads: int
    key_width: int
    value_width: int
    dtype: np.dtype
    decay_dtype: np.dtype
    scale: float
    reverse: bool = False
    bidirectional: bool = False
    has_initial_state: bool = False
    return_final_state: bool = False
    min_log_decay: float | None = None
    gate_normalizer: float | None = None
    exchange: Exchange | None = None
    sequences: Dim | None = None

    @property
    def directions(self) -> tuple[bool, ...]:
        """The scans of the call: for each, True if it is reversed."""
        return (False, True) if self.bidirectional else (self.reverse,)

    @property
    def state_shape(self) -> tuple[Dim, ...]:
        """Shape of the initial states, and of the final states, of one direction."""
        count = self.batch if self.sequences is None else self.sequences
        return count, self.heads, self.key_width, self.value_width

    @property
    def tuning_key(self) -> tuple[Hashable, ...]:
        """Key of the call among the stored winners."""
        decays = self.decay_dtype.name if self.gate_normalizer is None else "gates"
        shape = (self.batch, self.tokens, self.heads, self.key_width, self.value_width)
        packed = () if self.sequences is None else (self.sequences,)
        return (*shape, self.dtype.name, decays, self.bidirectional, *packed)

    @property
    def state_dtype(self) -> np.dtype:
        """Type of decays, states and accumulators: float64 for float64 inputs, else float32."""
        return np.dtype(jnp.float64 if self.dtype == jnp.float64 else jnp.float32)

    @property
    def dot_precision(self) -> jax.lax.Precision:
        """Precision of matrix products, not below that of the inputs.

        For float32 inputs, accelerators must not use tf32 or bf16 passes, which are their default.
        For narrower inputs these passes lose nothing.
        """
        narrow = self.dtype.itemsize < 4
        return jax.lax.Precision.DEFAULT if narrow else jax.lax.Precision.HIGHEST
