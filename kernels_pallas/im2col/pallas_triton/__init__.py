"""The pixels under a kernel in a Pallas kernel for CUDA GPUs: one pass over memory."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from kernels_pallas.core import pallas_compat
from kernels_pallas.core.pallas_compat import both, power_of_two
from kernels_pallas.im2col import xla
from kernels_pallas.im2col.spec import Im2colSpec

MOST_COLUMNS = 256
"""Columns of a program at most."""


@dataclasses.dataclass(frozen=True)
class Tiling:
    """How the work is cut: a program serves a block of positions of one image.

    Attributes:
        rows: Rows of positions of a program, a power of two.
        across: Positions of a row of a program, a power of two.
        num_warps: Warps per program.
        columns_first: A warp loads all columns of few positions, else lanes load the same column of
            neighbouring positions, which makes columns constants of the program.
    """

    rows: int
    across: int
    num_warps: int = 4
    columns_first: bool = False


def heuristic(spec: Im2colSpec) -> Tiling:
    """About 32 numbers for each of 128 threads, with as few outside of the map as possible.

    Neighbours in a row of positions read neighbouring memory: 16 of them, or the largest power of
    two that divides the row without a rest; what is left of the program's numbers are more rows.
    """
    _, w = spec.positions
    across = min(16, w & -w) if w % 4 == 0 else min(16, power_of_two(w))
    rows = max(1, 4096 // (across * _block_columns(spec)))
    # Positions further apart than a sector of 32 bytes share none of what lanes load at a time.
    columns_first = spec.stride * spec.channels * spec.dtype.itemsize > 32
    rows = min(rows, power_of_two(spec.positions[0]))
    return Tiling(rows, across, columns_first=columns_first)


def supports(spec: Im2colSpec) -> str | None:
    """Serves bfloat16 and float32 images of less than 2**31 numbers each."""
    if spec.dtype not in (jnp.bfloat16, jnp.float32):
        return f"images must be bfloat16 or float32, got {spec.dtype}"
    if spec.batch == 0:
        return "there is nothing to launch for no images"
    h, w = spec.positions
    # Indices of what is masked may overflow, they are not used.
    if max(spec.height * spec.width * spec.channels, h * w * spec.columns) >= 2**31:
        return f"images of {spec.height}x{spec.width} are beyond its 32-bit indices"
    return None


class _Call(NamedTuple):
    """What is static."""

    spec: Im2colSpec
    tiling: Tiling


def im2col(
    spec: Im2colSpec, images: Float[Array, "B H W C"], *, tiling: Tiling | None = None
) -> Float[Array, "B h w X"]:
    """See `kernels_pallas.im2col.api.im2col`."""
    return _patches(_Call(spec, tiling or heuristic(spec)), images)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _patches(call: _Call, images: Any) -> Any:
    return _forward(call, images)


def _patches_forward(call: _Call, images: Any) -> tuple[Any, None]:
    return _patches(call, images), None


def _patches_backward(call: _Call, _: None, grad_out: Any) -> tuple[Any]:
    """The pixels' part is linear, its transpose rarely wanted: XLA's will do."""
    spec = dataclasses.replace(call.spec, ones=False)
    shape = (spec.batch, spec.height, spec.width, spec.channels)
    images = jax.ShapeDtypeStruct(shape, spec.dtype)
    transpose = jax.linear_transpose(functools.partial(xla.im2col, spec), images)
    return tuple(transpose(grad_out))


# Without optimize_remat: the forward pass keeps no residuals, so there is nothing to save under
# jax.checkpoint, and the operator stays differentiable twice.
_patches.defvjp(_patches_forward, _patches_backward)


def _kernel(
    images_ref: Any, out_ref: Any, *, spec: Im2colSpec, tiling: Tiling, interpreting: bool
) -> None:
    """Refs: images [B, H * W * C]; output [B, h * w, X].

    With a padding of 1, pixels are outside of an image only in row -1, H, column -1 or W, and only
    the first and last row and column of the kernel at the first and last positions get there. So
    positions have a bit for each side they touch, numbers under the kernel one for each side they
    may leave by, and one "and" tells whether a number is to be read. A further bit of every
    position is for columns that are padding, all bits are for positions outside of the map.
    """
    h, w = spec.positions
    size, stride, channels = spec.kernel_size, spec.stride, spec.channels
    width = _block_columns(spec)
    program = pallas_compat.program_id(0)
    counts = _programs(spec, tiling)
    # The compiler lays lanes along the first axis.
    axes: list[Any] = [(slice(None), None), (None, slice(None))]
    by_column, by_position = axes if tiling.columns_first else reversed(axes)
    program, column = pallas_compat.divide(program, counts[3])
    columns = column * width + jnp.arange(width, dtype=jnp.int32)
    program, x = pallas_compat.divide(program, counts[2])
    image, y = pallas_compat.divide(program, counts[1])
    x, y = x * tiling.across, y * tiling.rows

    under, channel = pallas_compat.divide(columns, channels)
    row, column = pallas_compat.divide(under, size)
    offsets = (row * spec.width + column) * channels + channel
    leaves = _bits(row == 0, row == size - 1, column == 0, column == size - 1)
    leaves = jnp.where(columns < spec.taken, leaves, 16)[by_column] | 32

    block = jnp.arange(tiling.rows * tiling.across, dtype=jnp.int32)
    down, right = pallas_compat.divide(block, tiling.across)
    y, x = y + down, x + right
    ends = [(n - 1) * stride + size == side + 2 for n, side in ((h, spec.height), (w, spec.width))]
    touches = _bits(y == 0, (y == h - 1) & ends[0], x == 0, (x == w - 1) & ends[1]) | 16
    inside = None
    if h % tiling.rows or w % tiling.across:
        inside = (y < h) & (x < w)
        touches = jnp.where(inside, touches, 32)
        inside = inside[by_position]
    if spec.columns % width:
        inside = both(inside, (columns < spec.columns)[by_column])
    starts = ((y * stride - 1) * spec.width + x * stride - 1) * channels

    value = pallas_compat.load(
        images_ref,
        (image, starts[by_position] + offsets[by_column]),
        (touches[by_position] & leaves) == 0,
        interpreting=interpreting,
    )
    if spec.ones:
        value = jnp.where((columns == spec.taken)[by_column], jnp.ones((), value.dtype), value)
    if inside is not None:
        inside = jnp.broadcast_to(inside, value.shape)
    pallas_compat.store(
        out_ref,
        (image, (y * w + x)[by_position], columns[by_column]),
        value,
        inside,
        interpreting=interpreting,
    )


def _forward(call: _Call, images: Any) -> Any:
    spec, tiling = call
    images_of, blocks_down, blocks_across, blocks_of_columns = _programs(spec, tiling)
    h, w = spec.positions
    [out] = pallas_compat.triton_call(
        functools.partial(_kernel, spec=spec, tiling=tiling),
        name="im2col",
        programs=images_of * blocks_down * blocks_across * blocks_of_columns,
        out_shape=[jax.ShapeDtypeStruct((spec.batch, h * w, spec.columns), spec.dtype)],
        num_warps=tiling.num_warps,
        num_stages=1,
    )(images.reshape(spec.batch, -1))
    return out.reshape(spec.batch, h, w, spec.columns)


def _programs(spec: Im2colSpec, tiling: Tiling) -> tuple[int, int, int, int]:
    """Images, blocks of rows of positions, of positions in a row and of columns."""
    h, w = spec.positions
    return (
        spec.batch,
        -(-h // tiling.rows),
        -(-w // tiling.across),
        -(-spec.columns // _block_columns(spec)),
    )


def _block_columns(spec: Im2colSpec) -> int:
    return min(MOST_COLUMNS, power_of_two(spec.columns))


def _bits(*flags: Any) -> Any:
    """The flags as bits of one number, the first the lowest."""
    return sum(flag.astype(jnp.int32) << i for i, flag in enumerate(flags))
