"""Lists the kernels that a function launches."""

import collections
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core

from ..core.launch import LAUNCH


def launches(run: Callable[..., Any], *arguments: Any) -> collections.Counter[str]:
    """Counts the launches in a traced call by the kernel's name.

    Launches in every branch count, so name an implementation: without a name the function that is
    traced has a branch for each platform.

    Args:
        run: The function.
        *arguments: Arrays or `jax.ShapeDtypeStruct`s.
    """
    return collections.Counter(launch_names(jax.make_jaxpr(run)(*arguments).jaxpr))


def launch_names(jaxpr: core.Jaxpr) -> list[str]:
    """Returns the names of the kernels that `jaxpr` launches, in order, nested jaxprs included."""
    return [equation.params["name"] for equation in launch_equations(jaxpr)]


def launch_equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    """Yields the equations of `jaxpr` that launch kernels, in order, nested jaxprs included."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == LAUNCH:
            yield equation
        for inner in _inner_jaxprs(equation.params.values()):
            yield from launch_equations(inner)


def _inner_jaxprs(values: Any) -> Iterator[core.Jaxpr]:
    for value in values:
        if isinstance(value, core.ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, core.Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _inner_jaxprs(value)
