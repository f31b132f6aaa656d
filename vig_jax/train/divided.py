"""A function whose results are divided among programs, which compile side by side.

The time that XLA takes for a program with many results, such as all parameters after an update,
grows faster than their number. Compiling the update of ViG-S, which has 727 results, for an H200
took 33 s of CPU time as one program, and 11 s as five.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from vig_jax.train.programs import LoweredPrograms, Programs, TracedPrograms

RESULTS = 200
"""The number of results that a program is to have."""
SHARED = 16
"""Values that more results than this depend on are computed first, in a separate program."""


@dataclasses.dataclass(frozen=True)
class Divided:
    """A function that is used like a jitted one; its first argument is donated.

    Attributes:
        function: takes pytrees of arrays and returns one.
        in_shardings: see `jax.jit`; None is not allowed.
        out_shardings: likewise.
        compiler_options: see `jax.jit`.
        results: about the number of results that a program is to have.
    """

    function: Any
    in_shardings: tuple[Any, ...]
    out_shardings: Any
    compiler_options: dict[str, Any] | None = None
    results: int = RESULTS
    _made: dict[Any, Programs] = dataclasses.field(default_factory=dict, compare=False)

    def __call__(self, *arguments: Any) -> Any:
        """Calls the function."""
        return self.programs(*arguments)(*arguments)

    def trace(self, *arguments: Any) -> TracedPrograms:
        """Traces the programs for arrays or shapes."""
        return self.programs(*arguments).trace(*arguments)

    def lower(self, *arguments: Any) -> LoweredPrograms:
        """Traces and lowers the programs for arrays or shapes."""
        return self.trace(*arguments).lower()

    def programs(self, *arguments: Any) -> Programs:
        """Returns the programs for arguments of some types; a small function is one program."""
        leaves, structure = jax.tree.flatten(arguments)
        key = structure, tuple((x.shape, x.dtype) for x in leaves)
        if key not in self._made:
            self._made[key] = self._divide(*arguments)
        return self._made[key]

    def _divide(self, *arguments: Any) -> Programs:
        name = self.function.__name__
        closed, types = jax.make_jaxpr(self.function, return_shape=True)(*arguments)
        jaxpr = closed.jaxpr
        pieces = _pieces(jaxpr, self.results)
        if len(pieces) < 3:
            whole = self._jit(self.function, self.in_shardings, self.out_shardings, (0,))
            return Programs({name: whole}, lambda programs, *x: programs[name](*x))
        shardings: dict[Any, Any] = {
            var: sharding
            for variables, given, tree in (
                (jaxpr.outvars, self.out_shardings, types),
                (jaxpr.invars, self.in_shardings, arguments),
            )
            for var, sharding in zip(variables, _leaves(given, tree), strict=True)
            if isinstance(var, core.Var)
        }
        consumed = set(jaxpr.invars[: len(jax.tree.leaves(arguments[0]))]) - set(
            _variables(jaxpr.outvars)
        )
        programs: dict[str, Any] = {}
        for number, piece in enumerate(pieces):
            others = {v for other in pieces[1:] if other is not piece for v in other.inputs}
            part = jaxpr.replace(invars=piece.inputs, outvars=piece.outputs, eqns=piece.equations)
            programs[f"{name}_{number}"] = self._jit(
                _run(f"{name}_{number}", part, closed.consts),
                tuple(shardings.get(var) for var in piece.inputs),
                [shardings.get(var) for var in piece.outputs],
                tuple(
                    position
                    for position, var in enumerate(piece.inputs)
                    if number and var in consumed - others  # the first piece runs before the others
                ),
            )
        structure = jax.tree.structure(types)

        def sequence(programs: Mapping[str, Any], *arguments: Any) -> Any:
            values = dict(zip(jaxpr.invars, jax.tree.leaves(arguments), strict=True))
            for program, piece in zip(programs.values(), pieces, strict=True):
                results = program(*(values[var] for var in piece.inputs))
                values.update(zip(piece.outputs, results, strict=True))
            leaves = [
                np.asarray(out.val, x.dtype) if isinstance(out, core.Literal) else values[out]
                for out, x in zip(jaxpr.outvars, jax.tree.leaves(types), strict=True)
            ]
            return jax.tree.unflatten(structure, leaves)

        return Programs(programs, sequence, side_by_side=True)

    def _jit(self, function: Any, inputs: Any, outputs: Any, donated: tuple[int, ...]) -> Any:
        return jax.jit(
            function,
            in_shardings=inputs,
            out_shardings=outputs,
            donate_argnums=donated,
            compiler_options=self.compiler_options,
        )


@dataclasses.dataclass(frozen=True)
class _Piece:
    """A program of some equations: the values that it takes and makes, in order."""

    equations: Sequence[Any]
    inputs: Sequence[Any]
    outputs: Sequence[Any]


def _pieces(jaxpr: core.Jaxpr, results: int) -> list[_Piece]:
    """Returns what many results share, then independent pieces with about `results` results."""
    outs = list(dict.fromkeys(_variables(jaxpr.outvars)))
    needed_by = {var: 1 << number for number, var in enumerate(outs)}  # a bit for each result
    masks: list[int] = []  # of the equations, the last one first
    for equation in reversed(jaxpr.eqns):
        mask = functools.reduce(
            operator.or_, (needed_by.get(var, 0) for var in equation.outvars), 0
        )
        for var in _variables(equation.invars):
            needed_by[var] = needed_by.get(var, 0) | mask
        masks.append(mask)
    equations = [pair for pair in zip(jaxpr.eqns, reversed(masks), strict=True) if pair[1]]
    local = {mask for _, mask in equations if mask.bit_count() <= SHARED}
    # Results that need a local value are computed together.
    clusters: list[int] = []
    for mask in local:
        for other in [cluster for cluster in clusters if cluster & mask]:
            clusters.remove(other)
            mask |= other
        clusters.append(mask)
    groups, full = [0], 0
    for cluster in sorted(clusters, key=lambda mask: mask & -mask):  # by their first results
        if full >= results:
            groups, full = [*groups, 0], 0
        groups[-1] |= cluster
        full += cluster.bit_count()
    parts = [[eqn for eqn, mask in equations if mask not in local]]
    parts += [
        [eqn for eqn, mask in equations if mask in local and mask & group] for group in groups
    ]
    used = [dict.fromkeys(v for eqn in part for v in _variables(eqn.invars)) for part in parts]
    pieces = []
    for part, mine in zip(parts, used, strict=True):
        made = dict.fromkeys(v for eqn in part for v in eqn.outvars)
        elsewhere = {*outs, *(v for theirs in used if theirs is not mine for v in theirs)}
        inputs = [v for v in mine if v not in made and v not in jaxpr.constvars]
        pieces.append(_Piece(part, inputs, [v for v in made if v in elsewhere]))
    return pieces


def _variables(atoms: Iterable[Any]) -> list[core.Var]:
    """Returns operands without the constants among them."""
    return [atom for atom in atoms if isinstance(atom, core.Var)]


def _run(name: str, jaxpr: core.Jaxpr, constants: Sequence[Any]) -> Any:
    """Returns the function of a program under its name."""

    def run(*arrays: jax.Array) -> list[jax.Array]:
        return jax.core.eval_jaxpr(jaxpr, constants, *arrays)

    run.__name__ = name
    return run


def _leaves(shardings: Any, tree: Any) -> list[Any]:
    """Returns the sharding of each leaf of a tree, from a prefix of it."""
    return jax.tree.leaves(jax.tree.broadcast(shardings, tree))
