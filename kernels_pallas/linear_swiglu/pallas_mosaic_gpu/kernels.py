"""The kernel: the product and the gate, without writing the product to memory.

A program runs on each multiprocessor and walks over blocks of rows. One warpgroup copies operands
into a ring in shared memory. Two others take alternate tiles of the output, so that the tensor
cores work for one while the other computes gates.
"""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import mosaic
from ...core.integers import cdiv
from ...core.mosaic import Scalar, plgpu
from ...core.types import Block, Ref
from ..spec import LinearSwigluSpec
from .config import DEPTH, Config

_LOADER = 2
"""Number of the warpgroup that copies; those before it compute."""


class _Walk:
    """The tiles of one program, and their steps of the product.

    Tiles and steps are counted from the program's first one. Step s uses slot s % stages of the
    ring. Each computing warpgroup has its own barriers of a slot, because a warpgroup must wait for
    every phase of a barrier that it waits for.
    """

    def __init__(self, spec: LinearSwigluSpec, config: Config, programs: int):
        self.config = config
        self.programs = programs
        self.program = mosaic.axis_index("program")
        self.steps = cdiv(spec.features, DEPTH)
        self.columns = cdiv(spec.width, config.columns)
        blocks = cdiv(spec.rows, config.rows)
        self.blocks = jax.lax.div(blocks - 1 - self.program, programs) + 1
        self.tiles = self.blocks * self.columns

    def rows(self, block: Scalar) -> mosaic.Slice:
        """Returns the rows of x and of the output in a block."""
        return mosaic.span(
            (self.program + block * self.programs) * self.config.rows, self.config.rows
        )

    def features(self, step: int) -> mosaic.Slice:
        """Returns the features of a step; those past the end are read as zeros."""
        return mosaic.span(0 * self.program + step * DEPTH, DEPTH)

    def columns_of(self, column: Scalar) -> mosaic.Slice:
        """Returns the columns of a tile."""
        return mosaic.span(column * self.config.columns, self.config.columns)

    def slot(self, step: Scalar) -> tuple[Scalar, Scalar]:
        """Returns the slot of a step, and the slot's barrier for the warpgroup that computes it."""
        slot = jax.lax.rem(step, self.config.stages)
        warpgroup = jax.lax.rem(jax.lax.div(step, self.steps), 2)
        return slot, warpgroup * self.config.stages + slot


def _kernel(
    x_ref: Ref,
    kernel_ref: Ref,
    out_ref: Ref,
    shared: SimpleNamespace,
    *,
    spec: LinearSwigluSpec,
    config: Config,
    programs: int,
) -> None:
    """Computes the blocks of rows of one program.

    Refs: x [N, D], kernel [D, 2, I]; output [N, I].
    """
    walk = _Walk(spec, config, programs)
    warpgroup = mosaic.axis_index("warpgroup")

    @mosaic.when(warpgroup == _LOADER)
    def _() -> None:
        plgpu.set_max_registers(40, action="decrease")
        _copy(walk, x_ref, kernel_ref, shared)

    @mosaic.when(warpgroup < _LOADER)
    def _() -> None:
        plgpu.set_max_registers(232, action="increase")
        _compute(walk, warpgroup, out_ref, shared)


def _copy(walk: _Walk, x_ref: Ref, kernel_ref: Ref, shared: SimpleNamespace) -> None:
    """Copies the operands of all steps into the ring, and rows of x that are kept beside it."""
    config = walk.config

    def copy_step(block: Scalar, column: Scalar, number: int) -> None:
        step = (block * walk.columns + column) * walk.steps + number
        slot, barrier = walk.slot(step)

        @mosaic.when(step >= config.stages)
        def _() -> None:
            plgpu.barrier_wait(shared.free.at[walk.slot(step - config.stages)[1]])

        features, loaded = walk.features(number), shared.loaded.at[barrier]
        for half in range(2):
            part = kernel_ref.at[features, half, walk.columns_of(column)]
            plgpu.copy_gmem_to_smem(part, shared.weights.at[slot, half], loaded)
        if not config.keep_rows:
            plgpu.copy_gmem_to_smem(x_ref.at[walk.rows(block), features], shared.x.at[slot], loaded)

    @mosaic.loop(0, walk.blocks)
    def _(block: Scalar) -> None:
        if config.keep_rows:
            for number in range(walk.steps):

                @mosaic.when(block > 0)
                def _() -> None:
                    plgpu.barrier_wait(shared.x_free.at[number])  # noqa: B023

                rows = x_ref.at[walk.rows(block), walk.features(number)]
                plgpu.copy_gmem_to_smem(rows, shared.x.at[number], shared.x_loaded.at[number])
                copy_step(block, 0, number)

        @mosaic.loop(int(config.keep_rows), walk.columns)
        def _(column: Scalar) -> None:
            for number in range(walk.steps):
                copy_step(block, column, number)

    steps = walk.tiles * walk.steps

    @mosaic.loop(jnp.maximum(steps - config.stages, 0), steps)
    def _(step: Scalar) -> None:
        plgpu.barrier_wait(shared.free.at[walk.slot(step)[1]])

    if config.keep_rows:
        for number in range(walk.steps):
            plgpu.barrier_wait(shared.x_free.at[number])


def _compute(walk: _Walk, warpgroup: Scalar, out_ref: Ref, shared: SimpleNamespace) -> None:
    """Computes every other tile, from that with the warpgroup's number."""
    config = walk.config

    @mosaic.loop(0, jax.lax.div(walk.tiles - warpgroup + 1, 2))
    def _(n: Scalar) -> None:
        tile = 2 * n + warpgroup
        block, column = jax.lax.div(tile, walk.columns), jax.lax.rem(tile, walk.columns)
        # Two tiles in a row are of different warpgroups: the last two release the rows of x.
        last = column >= walk.columns - 2
        if config.keep_rows:

            @mosaic.when(column < 2)
            def _() -> None:
                for number in range(walk.steps):
                    plgpu.barrier_wait(shared.x_loaded.at[number])

        def release(number: int) -> None:
            barrier = walk.slot(tile * walk.steps + number)[1]
            plgpu.barrier_arrive(shared.free.at[barrier])
            if config.keep_rows:
                plgpu.barrier_arrive(shared.x_free.at[number], predicate=last)

        def product(gate: Ref, up: Ref) -> tuple[Block, Block]:
            for number in range(walk.steps):
                slot, barrier = walk.slot(tile * walk.steps + number)
                plgpu.barrier_wait(shared.loaded.at[barrier])
                x = shared.x.at[number if config.keep_rows else slot]
                plgpu.wgmma(gate, x, shared.weights.at[slot, 0])
                plgpu.wgmma(up, x, shared.weights.at[slot, 1])
                if number:
                    plgpu.wgmma_wait(2)  # all but this step's two products are done
                    release(number - 1)
            plgpu.wgmma_wait(0)
            release(walk.steps - 1)
            return gate[...], up[...]

        gate, up = mosaic.with_sums(product, [(config.rows, config.columns)] * 2)
        out = gate * mosaic.sigmoid(gate) * up
        plgpu.wait_smem_to_gmem(0, wait_read_only=True)
        shared.out[warpgroup] = out.astype(out_ref.dtype)
        plgpu.commit_smem()
        place = out_ref.at[walk.rows(block), walk.columns_of(column)]
        plgpu.copy_smem_to_gmem(shared.out.at[warpgroup], place)

    plgpu.wait_smem_to_gmem(0)


def forward(
    spec: LinearSwigluSpec,
    config: Config,
    x: Float[Array, "N D"],
    kernel: Float[Array, "D X"],
    multiprocessors: int,
) -> Float[Array, "N I"]:
    """Launches the kernel, with a program for each of the multiprocessors."""
    steps, stages = cdiv(spec.features, DEPTH), config.stages
    programs = min(multiprocessors, cdiv(spec.rows, config.rows))
    copies = 2 if config.keep_rows else 3
    kept = steps if config.keep_rows else stages
    [out] = mosaic.mosaic_call(
        functools.partial(_kernel, spec=spec, config=config, programs=programs),
        name="linear_swiglu",
        grid={"program": programs},
        warpgroups=3,
        outputs=[jax.ShapeDtypeStruct((spec.rows, spec.width), spec.dtype)],
        scratch={
            "x": mosaic.tile((kept, config.rows, DEPTH), spec.dtype),
            "weights": mosaic.tile((stages, 2, DEPTH, config.columns), spec.dtype),
            "out": mosaic.tile((2, config.rows, config.columns), spec.dtype),
            "x_loaded": mosaic.barrier(1, steps),
            "x_free": mosaic.barrier(2, steps),
            "loaded": mosaic.barrier(copies, 2 * stages),
            "free": mosaic.barrier(1, 2 * stages),
        },
    )(x, kernel.reshape(spec.features, 2, spec.width))
    return out
