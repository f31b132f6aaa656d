"""The arrays of one mixer call, and the facts that are known before the values of arrays are."""

import dataclasses
from collections.abc import Hashable
from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Float

from ..core.types import Dim
from ..gla.exchange import Exchange
from ..gla.spec import GlaSpec


class MixerInputs(NamedTuple):
    """Arrays of the operator, or their gradients; `kernels_pallas.vig_mixer` describes them."""

    projected: Float[Array, "B T E"]
    local: Float[Array, "B T D"]
    gate_bias: Float[Array, " D"]
    decay_kernel: Float[Array, "R D"]
    decay_bias: Float[Array, " D"]
    scan_scale: Float[Array, " V"]
    local_scale: Float[Array, " V"]
    out_kernel: Float[Array, "D O"]


@dataclasses.dataclass(frozen=True)
class MixerSpec:
    """Static facts of a call, by which an implementation decides whether it can serve it.

    Attributes:
        batch: Images B.
        tokens: Tokens T.
        heads: Heads H.
        width: Model width D; a head has D / 2H key and D / H value channels.
        rank: Number R of features that the decays' logits are computed from.
        out_features: Width O of the result.
        dtype: Type of `projected`, `local`, both kernels and the result.
        scale: Factor on the queries.
        gate_normalizer: Log-decays are log_sigmoid(logit) / gate_normalizer.
        epsilon: Added to the mean square in both norms.
        activation: Activation of the blend, "silu" or None.
        exchange: The tokens are a part of a sequence: see `GlaSpec`.
        sequences: Number of sequences that lie side by side in the tokens, or None: see `GlaSpec`.
    """

    batch: Dim
    tokens: int
    heads: int
    width: int
    rank: int
    out_features: int
    dtype: np.dtype
    scale: float
    gate_normalizer: float
    epsilon: float
    activation: str | None
    exchange: Exchange | None = None
    sequences: Dim | None = None

    @property
    def tuning_key(self) -> tuple[Hashable, ...]:
        """Returns that of the scan, whose kernels are the ones that are tuned."""
        return self.scan.tuning_key

    @property
    def value_width(self) -> int:
        """Channels V per head of values, local map and blend."""
        return self.width // self.heads

    @property
    def rows(self) -> Dim:
        """Number of vectors of V channels in the blend."""
        return self.batch * self.tokens * self.heads

    @property
    def starts(self) -> dict[str, int]:
        """First column of each part of `projected` [B, T, 3 D + R]."""
        half = self.width // 2
        names = ("q", "k", "v", "gate", "decay")
        return dict(zip(names, (0, half, 2 * half, 4 * half, 6 * half), strict=True))

    @property
    def scan(self) -> GlaSpec:
        """Spec of the scan in both directions, with decays given by gates.

        It promises no `min_log_decay`, since logits are unbounded.
        """
        return GlaSpec(
            batch=self.batch,
            tokens=self.tokens,
            heads=self.heads,
            key_width=self.value_width // 2,
            value_width=self.value_width,
            dtype=self.dtype,
            decay_dtype=self.dtype,
            scale=self.scale,
            bidirectional=True,
            gate_normalizer=self.gate_normalizer,
            exchange=self.exchange,
            sequences=self.sequences,
        )
