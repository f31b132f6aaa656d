"""Drives the scans of one or two directions, forward and backward."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ...core import triton
from ...core.named_refs import Refs, launch
from ...core.types import Block, Tree
from .config import KernelConfig
from .shapes import Problem, Program


class Direction(NamedTuple):
    """One direction of a scan, as one program sees it.

    Attributes:
        number: Position among the directions of the call.
        reverse: The scan runs from the last token to the first.
        output: Position among the outputs.
        add: The program has scanned another direction before, and adds to its outputs.
    """

    number: int
    reverse: bool
    output: int
    add: bool


Scan = Callable[[Direction], Block]
"""Scans a program's segment in one direction; returns the smallest decays of a chunk [K]."""

MakeScan = Callable[[Refs, Program, bool], Scan]
"""Makes the scan of a program from its references; the last argument asks for exact scores."""


def launch_scans(
    make_scan: MakeScan,
    *,
    name: str,
    problem: Problem,
    config: KernelConfig,
    directions: Sequence[bool],
    inputs: Mapping[str, Tree],
    outputs: Mapping[str, Tree],
    start_from: Mapping[str, Tree] | None = None,
) -> dict[str, Tree]:
    """Launches scans of all directions, and repeats those with too strong decays exactly.

    The second launch is left out if the call promises that there are no such decays.

    Args:
        make_scan: Makes the scan of a program.
        name: Name of the first launch; the second is `<name>_strong_decays`.
        problem: Static shape of the launch.
        config: Tiling of both launches.
        directions: For each direction, True if it is reversed.
        inputs: As of `launch`. "borders" are the first token of each sequence, and T, or None if
            rows are sequences.
        outputs: As of `launch`.
        start_from: As of `launch`.

    Returns:
        The outputs by name.
    """
    split = config.split_directions and len(directions) > 1
    programs = problem.programs * (len(directions) if split else 1)
    run = functools.partial(launch, programs=programs, num_stages=config.num_stages)

    def kernel(exact: bool) -> Callable[..., None]:
        return functools.partial(
            _scan_kernel,
            make_scan=make_scan,
            problem=problem,
            directions=[
                Direction(i, reverse, i if split else 0, i > 0 and not split)
                for i, reverse in enumerate(directions)
            ],
            split=split,
            exact=exact,
        )

    results = run(
        kernel(exact=False),
        name=name,
        inputs=inputs,
        outputs={**outputs, "least_decay": jax.ShapeDtypeStruct((programs,), jnp.float32)},
        num_warps=config.num_warps,
        start_from=start_from,
    )
    least_decay = results.pop("least_decay")
    if not problem.strong_decays:
        return results
    return run(
        kernel(exact=True),
        name=f"{name}_strong_decays",
        inputs={**inputs, "least_decay": least_decay},
        outputs=outputs,
        num_warps=config.exact_num_warps,
        num_stages=1,
        start_from=results,
    )


def _scan_kernel(
    ref: Refs,
    *,
    make_scan: MakeScan,
    problem: Problem,
    directions: Sequence[Direction],
    split: bool,
    exact: bool,
) -> None:
    """Scans a segment in one direction if `split`, else in all directions, one after the other.

    Unless `exact`, the program writes the smallest decay of a chunk that it found. If `exact`, only
    programs for which that decay was too small do anything.
    """
    number = triton.program_id(0)
    least_index = (number,)
    if split:
        which = number % len(directions)
        number = number // len(directions)
    program = Program.from_number(problem, number, ref["borders"])
    scan = make_scan(ref, program, exact)

    def run(chosen: Sequence[Direction]) -> None:
        least = scan(chosen[0])
        for direction in chosen[1:]:
            triton.barrier()
            least = jnp.minimum(least, scan(direction))
        if not exact:
            triton.store(ref["least_decay"], least_index, jnp.min(least))

    def run_all() -> None:
        if split:
            for direction in directions:
                triton.when(which == direction.number)(functools.partial(run, [direction]))
        else:
            run(directions)

    if exact:
        least = triton.load(ref["least_decay"], least_index)
        triton.when(problem.too_strong(least))(run_all)
    else:
        run_all()
