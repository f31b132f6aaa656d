"""Operands of the kernels and the references that stand for them inside of kernels.

An operand is an array, or some columns of an array that holds other operands too. Operands are
pytrees. Inside of a kernel their leaves are references instead of arrays.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

from ...core.types import Ref


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Columns:
    """Columns of an array [B, T, E], used in place of an array [B, T, H, K or V].

    Attributes:
        array: [B, T, E].
        start: First column. The columns of each head follow those of the head before.
    """

    array: Ref
    start: int = dataclasses.field(metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Gates:
    """Logits of decay gates [B, T, H, K], computed where they are read: features @ kernel + bias.

    Attributes:
        array: [B, T, E]; the features are `rank` columns of it.
        start: First column of the features.
        rank: Number of features.
        kernel: [rank, F]; the gates use its columns from `column` on, head by head.
        bias: [F]; the gates use its elements from `column` on, head by head.
        column: First column of the gates in `kernel` and `bias`.
    """

    array: Ref
    start: int = dataclasses.field(metadata={"static": True})
    rank: int = dataclasses.field(metadata={"static": True})
    kernel: Ref
    bias: Ref
    column: int = dataclasses.field(metadata={"static": True})


Operand = Any
"""An array [B, T, H, K or V], or `Columns` used in its place, or `Gates` in place of log-decays."""


class ScanInputs(NamedTuple):
    """Inputs of the scans, or their gradients.

    Attributes:
        q: Queries [B, T, H, K].
        k: Keys [B, T, H, K].
        v: Values [B, T, H, V].
        log_decays: Log-decays or gates [B, T, H, K] of each direction.
    """

    q: Operand
    k: Operand
    v: Operand
    log_decays: tuple[Operand, ...]
