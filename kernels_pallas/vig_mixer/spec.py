"""The static facts of one mixer call, known before any array value is."""

import dataclasses

import numpy as np

from kernels_pallas.gla.spec import GlaSpec


@dataclasses.dataclass(frozen=True)
class MixerSpec:
    """Everything an implementation may look at to decide whether it can serve a call.

    Attributes:
        batch: Images B.
        tokens: Tokens T.
        heads: Heads H.
        width: Model width D; a head has D / 2H key and D / H value channels.
        rank: Features R that the decays' logits are made from.
        out_features: Width O of the result.
        dtype: Type of `projected`, `local`, both kernels and the result.
        scale: Factor on the queries.
        gate_normalizer: Log-decays are log_sigmoid(logit) / gate_normalizer.
        epsilon: Of both norms.
        activation: "silu" or None, on the blend.
    """

    batch: int
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

    @property
    def value_width(self) -> int:
        """V, channels per head of values, local map and blend."""
        return self.width // self.heads

    @property
    def starts(self) -> dict[str, int]:
        """The first column in `projected` [B, T, 3 D + R] of each of its parts."""
        half = self.width // 2
        names = ("q", "k", "v", "gate", "decay")
        return dict(zip(names, (0, half, 2 * half, 4 * half, 6 * half), strict=True))

    @property
    def scan(self) -> GlaSpec:
        """The scan in both directions, its decays given by gates.

        Logits are unbounded, and so are log-decays: there is no `min_log_decay` to promise.
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
        )
