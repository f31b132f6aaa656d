"""Reads from a compiled program what its devices exchange."""

import math
import re
from typing import Any, NamedTuple

_KINDS = "all-gather|all-to-all|all-reduce|reduce-scatter|collective-permute|ragged-all-to-all"
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?[\w.-]+ = (.*?) ({_KINDS})(?:-start)?\(", re.MULTILINE)
_SHAPE = re.compile(r"[a-z]\w*\[([\d,]*)\]")


class Collective(NamedTuple):
    """One array that is exchanged: the operation and the shape of its result."""

    kind: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def collectives(compiled: Any) -> list[Collective]:
    """Returns all exchanges of a compiled function, from its text, sorted."""
    return sorted(
        Collective(kind, tuple(int(n) for n in dims.split(",") if n))
        for result, kind in _OPERATION.findall(compiled.as_text())
        for dims in _SHAPE.findall(result)
    )
