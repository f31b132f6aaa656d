"""The Mosaic GPU backend of Pallas: launching, tiles in shared memory, and products.

This is the only file that imports the backend, and it has the names that differ between releases
of JAX. Without the backend the file can still be imported, and `unsupported` gives the reason for
which no kernel can serve a call.

A program is a group of warpgroups, each of 128 threads: one may load tiles while others compute.
"""

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.typing import DTypeLike

from .device import Device
from .launch import is_interpreting, launchable
from .types import Block, Ref

plgpu: Any
"""The module of the backend, or None on a JAX that has none or an older one."""
try:
    from jax.experimental.pallas import mosaic_gpu as plgpu

    if jax.__version_info__ < (0, 11):
        plgpu = None
except ImportError:
    plgpu = None

PLATFORMS = ("cuda",)
"""Platforms that kernels of the Mosaic backend are lowered for."""

CAPABILITIES = (9.0, 10.0)
"""Compute capabilities, from the first and below the second, that have the products (wgmma)."""

MULTIPROCESSORS = 132
"""Multiprocessors of an H100 or H200, assumed where no GPU is known."""

SHARED_BYTES = 230_000
"""Shared memory of a multiprocessor that a program may use, without room for its barriers."""

ROW_ALIGNMENT = 8
"""The number of rows of an array must be a multiple of it, for copies into tiles of products."""

MAX_ROWS = 2**31 - 2**16
"""Most rows that kernels count in 32 bits, those included that a tile has past the end."""

_COPYING_REGISTERS = 40
"""Registers that a thread needs which only copies."""

Slice = Any
"""A range of an axis of a reference, from `span`."""

Scalar = int | jax.Array
"""An integer, known when tracing or traced."""

when = pl.when
loop = pl.loop
span = pl.ds


def unsupported(device: Device | None) -> str | None:
    """Returns the reason for which kernels cannot be compiled for a device, or None.

    Args:
        device: The device, or None if it is not known yet.
    """
    if plgpu is None:
        return f"JAX {jax.__version__} has no Mosaic GPU backend of Pallas as of JAX 0.11"
    if device is not None:
        lowest, end = CAPABILITIES
        if not lowest <= device.compute_capability < end:
            return (
                f"compute capability {device.compute_capability} of the GPU is not in "
                f"[{lowest}, {end})"
            )
    return None


def mosaic_call(
    kernel: Callable[..., None],
    *,
    name: str,
    grid: Mapping[str, int],
    warpgroups: int,
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: Mapping[str, Any],
) -> Callable[..., Any]:
    """Makes a function that launches a kernel of the Mosaic backend.

    Args:
        kernel: The kernel. It takes references to whole arrays, inputs first, then outputs, and
            last a namespace of the references in `scratch`. `axis_index` gives its place in the
            grid, and its warpgroup as the axis "warpgroup".
        name: The kernel's name in profiles and in the jaxpr.
        grid: Programs along each named axis.
        warpgroups: Warpgroups per program.
        outputs: Shapes and types of the outputs.
        scratch: Shared memory and barriers by name: see `tile`, `buffer` and `barrier`.

    Returns:
        A function of the input arrays that returns the outputs.
    """

    def body(*refs: Ref) -> None:
        count = len(refs) - len(scratch)
        kernel(
            *refs[:count], types.SimpleNamespace(**dict(zip(scratch, refs[count:], strict=True)))
        )

    call = plgpu.kernel(
        body,
        out_type=tuple(outputs),
        scratch_types=list(scratch.values()),
        grid=tuple(grid.values()),
        grid_names=tuple(grid),
        num_threads=warpgroups,
        thread_name="warpgroup",
        kernel_name=name,
        compiler_params=plgpu.CompilerParams(
            approx_math=True, lowering_semantics=plgpu.LoweringSemantics.Warpgroup
        ),
        interpret=plgpu.InterpretGPUParams() if is_interpreting() else None,
    )

    def with_32_bits(*arrays: jax.Array) -> Any:
        with jax.enable_x64(
            False
        ):  # places in a grid have 32 bits, and Python's integers join them
            return call(*arrays)

    return launchable(with_32_bits, name=name, shapes=outputs)


def axis_index(name: str) -> jax.Array:
    """Returns the program's place along an axis of the grid, or its "warpgroup"."""
    return jax.lax.axis_index(name)


def share_registers(warpgroups: int, *, copies: bool) -> None:
    """Gives registers of the warpgroup that copies to those that compute.

    Args:
        warpgroups: Warpgroups of the program, of which one copies. Each must call this. With three
            of them it does nothing: each has 168 registers, and more were no faster.
        copies: The calling warpgroup is the one that copies.
    """
    if warpgroups <= 3:
        return
    own = 65536 // (128 * warpgroups) // 8 * 8
    if copies:
        plgpu.set_max_registers(_COPYING_REGISTERS, action="decrease")
    else:
        more = (own * warpgroups - _COPYING_REGISTERS) // (warpgroups - 1) // 8 * 8
        plgpu.set_max_registers(more, action="increase")


def tile(shape: Sequence[int], dtype: DTypeLike, swizzle: int = 128) -> Any:
    """Describes shared memory that products read; `swizzle` bytes divide a row's."""
    columns = swizzle // jnp.dtype(dtype).itemsize
    transforms = (plgpu.TilingTransform((8, columns)), plgpu.SwizzleTransform(swizzle))
    return plgpu.SMEM(tuple(shape), dtype, transforms=transforms)


def buffer(shape: Sequence[int], dtype: DTypeLike) -> Any:
    """Describes shared memory for vectors."""
    return plgpu.SMEM(tuple(shape), dtype)


def barrier(arrivals: int, count: int) -> Any:
    """Describes `count` barriers, each of which opens after a number of arrivals."""
    return plgpu.Barrier(num_arrivals=arrivals, num_barriers=count)


def dot(a: Ref, b: Ref, shape: tuple[int, int]) -> Block:
    """Multiplies matrices in shared memory, and accumulates in float32.

    Args:
        a: [M, N], with M a multiple of 64.
        b: [N, L].
        shape: (M, L).
    """

    def run(total: Ref) -> Block:
        plgpu.wgmma(total, a, b)
        return total[...]

    return with_sums(run, [shape])


def with_sums(run: Callable[..., Any], shapes: Sequence[tuple[int, int]]) -> Any:
    """Calls a function with accumulators of products, which are zero, and returns its result.

    Args:
        run: Takes a reference to each accumulator, and must read each.
        shapes: Shapes of the accumulators, float32.
    """
    return pl.run_scoped(run, *(plgpu.ACC(shape, jnp.float32) for shape in shapes))


def zeros(shape: tuple[int, int]) -> Block:
    """Returns float32 zeros, laid out as sums of products."""
    return matrix(jnp.zeros(shape, jnp.float32))


def ones_row(width: int) -> Block:
    """Returns float32 ones, laid out as `row`."""
    return plgpu.layout_cast(jnp.ones((width,), jnp.float32), plgpu.Layout.WGMMA.reduce(0))


def iota(shape: tuple[int, int], axis: int) -> Block:
    """Returns the numbers of rows (axis 0) or columns (axis 1), laid out as sums of products."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=plgpu.Layout.WGMMA)


def matrix(value: Block) -> Block:
    """Lays out a matrix as sums of products are."""
    return plgpu.layout_cast(value, plgpu.Layout.WGMMA)


def read_matrix(ref: Ref) -> Block:
    """Reads a matrix from GPU memory, laid out as sums of products."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA, optimized=False)


def row(ref: Ref) -> Block:
    """Reads a vector from shared memory, with an element for each column of a matrix."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0))


def read_row(ref: Ref) -> Block:
    """Reads a vector from GPU memory, with an element for each column of a matrix."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)


def read_column(ref: Ref) -> Block:
    """Reads a vector from GPU memory, with an element for each row of a matrix."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)


def along_rows(vector: Block, shape: tuple[int, int]) -> Block:
    """Repeats a vector with an element for each column, for all rows."""
    return jax.lax.broadcast_in_dim(vector, shape, (1,))


def along_columns(vector: Block, shape: tuple[int, int]) -> Block:
    """Repeats a vector with an element for each row, for all columns."""
    return jax.lax.broadcast_in_dim(vector, shape, (0,))


def sigmoid(x: Block) -> Block:
    """Computes 1 / (1 + exp(-x)) in float32 by approximations of two instructions, no division."""
    root = jax.lax.rsqrt(1.0 + jnp.exp(-x))
    return root * root
