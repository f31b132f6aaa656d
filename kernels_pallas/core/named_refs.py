"""Launches kernels that find their references by name."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax

from . import triton
from .types import Ref, Tree

Refs = Mapping[str, Tree]
"""References by name: trees of references, or None for an array that a call does not have."""


def launch(
    kernel: Callable[..., None],
    *,
    name: str,
    programs: int,
    inputs: Mapping[str, Tree],
    outputs: Mapping[str, Tree],
    num_warps: int,
    num_stages: int,
    start_from: Mapping[str, Tree] | None = None,
) -> dict[str, Tree]:
    """Launches a kernel that finds its references by name.

    Args:
        kernel: Takes one mapping of the references of inputs and outputs.
        name: Name of the kernel.
        programs: Number of programs.
        inputs: Trees of operands by name. An array that occurs more than once is passed once.
        outputs: Trees of shapes and types by name.
        num_warps: Warps per program.
        num_stages: Depth of Triton's software pipeline.
        start_from: Arrays by names of outputs, consumed: the outputs start with their contents.
            Such an array may be an input too. Otherwise the kernel sees it as the output alone.

    Returns:
        Trees of arrays, by the names of the outputs.
    """
    start_from = start_from or {}
    arrays, layout = flatten_distinct(list(inputs.values()))
    shapes, structure = jax.tree.flatten(list(outputs.values()))
    count = len(arrays)
    aliases: dict[int, int] = {}
    first = 0
    for output, tree in outputs.items():
        for i, array in enumerate(jax.tree.leaves(start_from.get(output))):
            number = next((n for n, x in enumerate(arrays[:count]) if x is array), len(arrays))
            if number == len(arrays):
                arrays.append(array)
            aliases[number] = first + i
        first += len(jax.tree.leaves(tree))

    def with_names(*refs: Ref) -> None:
        given = layout.unflatten(refs[:count])
        made = jax.tree.unflatten(structure, refs[-len(shapes) :])
        named = dict(zip([*inputs, *outputs], [*given, *made], strict=True))
        kernel(named)

    results = triton.triton_call(
        with_names,
        name=name,
        programs=programs,
        out_shape=shapes,
        num_warps=num_warps,
        num_stages=num_stages,
        aliases=aliases,
    )(*arrays)
    return dict(zip(outputs, jax.tree.unflatten(structure, results), strict=True))


@dataclasses.dataclass(frozen=True)
class Layout:
    """The positions of a tree's leaves in a list of arrays.

    Attributes:
        tree: Structure of the tree.
        positions: For each leaf its position in the list.
    """

    tree: jax.tree_util.PyTreeDef
    positions: tuple[int, ...]

    def unflatten(self, arrays: Sequence[Tree]) -> Tree:
        """Returns the tree with `arrays` as leaves."""
        return jax.tree.unflatten(self.tree, [arrays[i] for i in self.positions])


def flatten_distinct(tree: Tree) -> tuple[list[Tree], Layout]:
    """Returns the distinct leaves of a tree and their layout.

    An array that occurs more than once is one leaf, so that kernels take it once.
    """
    leaves, structure = jax.tree.flatten(tree)
    distinct = list({id(leaf): leaf for leaf in leaves}.values())
    number = {id(leaf): i for i, leaf in enumerate(distinct)}
    return distinct, Layout(structure, tuple(number[id(leaf)] for leaf in leaves))
