"""Random initial variables from a program that is small to compile.

A model has many parameters of few kinds: the same initialiser and shape, each with its own key. As
they are written, each parameter has a copy of the draw, and compiling the 180 of ViG-S for an H200
takes 27 s of CPU time. With one draw for each kind, run once for each parameter, it takes 4 s.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

FOLD_IN = "random_fold_in"
"""The primitive by which Flax makes the key of a parameter. Its second operand is a constant."""


def grouped_draws(init: Callable[[jax.Array], Any]) -> Callable[[jax.Array], Any]:
    """Returns `init` with equal draws compiled once; the results are the same to the bit.

    Args:
        init: function from a key to a pytree of arrays, which can be traced. Operations that the
            results do not depend on are left out.
    """

    def grouped(key: jax.Array) -> Any:
        closed, shapes = jax.make_jaxpr(init, return_shape=True)(key)
        draws = [_draw_of(closed.jaxpr, out) for out in closed.jaxpr.outvars]
        kinds: dict[str, list[int]] = {}
        for number, draw in enumerate(draws):
            kinds.setdefault(draw.kind, []).append(number)
        leaves: dict[int, jax.Array] = {}
        for numbers in kinds.values():
            results = _run_all([draws[number] for number in numbers], closed.consts, key)
            leaves.update(zip(numbers, results, strict=True))
        return jax.tree.unflatten(
            jax.tree.structure(shapes), [leaves[number] for number in range(len(draws))]
        )

    return grouped


@dataclasses.dataclass(frozen=True)
class _Draw:
    """The program of one result.

    Attributes:
        jaxpr: takes the inputs of the whole program, then `data`.
        data: the constants that are folded into keys.
        kind: equal for draws that differ in `data` alone.
    """

    jaxpr: core.Jaxpr
    data: tuple[np.ndarray, ...]
    kind: str


def _draw_of(jaxpr: core.Jaxpr, out: Any) -> _Draw:
    """Returns the part of a program that one of its results depends on."""
    needed, equations = {id(out)}, []
    for equation in reversed(jaxpr.eqns):
        if equation.effects or any(id(var) in needed for var in equation.outvars):
            needed.update(id(var) for var in equation.invars)
            equations.append(equation)
    data, inputs, replaced = [], [], []
    for equation in reversed(equations):
        if equation.primitive.name == FOLD_IN and isinstance(equation.invars[1], core.Literal):
            literal = equation.invars[1]
            data.append(np.asarray(literal.val))
            inputs.append(core.Var(literal.aval))
            equation = equation.replace(invars=[equation.invars[0], inputs[-1]])
        replaced.append(equation)
    draw = jaxpr.replace(invars=[*jaxpr.invars, *inputs], outvars=[out], eqns=replaced)
    return _Draw(draw, tuple(data), str(draw))


def _run_all(draws: Sequence[_Draw], consts: Sequence[Any], key: jax.Array) -> Sequence[jax.Array]:
    """Returns the results of draws of one kind."""
    first = draws[0]

    def run(data: Sequence[Any]) -> jax.Array:
        (result,) = jax.core.eval_jaxpr(first.jaxpr, consts, key, *data)
        return jnp.asarray(result)

    if len(draws) == 1 or not first.data:
        return [run(draw.data) for draw in draws]
    columns = [jnp.stack(column) for column in zip(*(draw.data for draw in draws), strict=True)]
    return list(jax.lax.map(run, columns))
