"""The kernel: one pass over memory."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ...core import triton
from ...core.triton import both, divide
from ...core.types import Block, Ref
from ..spec import Im2colSpec
from .config import Config, block_columns


def _kernel(images_ref: Ref, out_ref: Ref, *, spec: Im2colSpec, config: Config) -> None:
    """Copies the pixels under a block of positions.

    Refs: images [B, H * W * C]; output [B, h * w, X].

    With a padding of 1, a pixel is outside of an image only in row -1 or H, or in column -1 or W.
    Only the first and last row and column of the kernel reach there, at the first and last
    positions. So each position has a bit for each side that it touches, and each number under the
    kernel has a bit for each side at which it may leave the image. A number is read if these bits
    have none in common. One more bit, set in every position, marks columns that are padding. Yet
    another one, set in every column, marks positions outside of the map.
    """
    h, w = spec.positions
    size, stride, channels = spec.kernel_size, spec.stride, spec.channels
    width = block_columns(spec)
    program = triton.program_id(0)
    blocks_down, blocks_across, blocks_of_columns = config.blocks(spec)
    # The compiler lays lanes along the first axis.
    axes: list[Any] = [(slice(None), None), (None, slice(None))]
    by_column, by_position = axes if config.columns_first else reversed(axes)
    program, column = divide(program, blocks_of_columns)
    columns = column * width + jnp.arange(width, dtype=jnp.int32)
    program, x = divide(program, blocks_across)
    image, y = divide(program, blocks_down)
    x, y = x * config.across, y * config.rows

    under, channel = divide(columns, channels)
    row, column = divide(under, size)
    offsets = (row * spec.width + column) * channels + channel
    leaves = _bits(row == 0, row == size - 1, column == 0, column == size - 1)
    leaves = jnp.where(columns < spec.taken, leaves, 16)[by_column] | 32

    block = jnp.arange(config.rows * config.across, dtype=jnp.int32)
    down, right = divide(block, config.across)
    y, x = y + down, x + right
    ends = [(n - 1) * stride + size == side + 2 for n, side in ((h, spec.height), (w, spec.width))]
    touches = _bits(y == 0, (y == h - 1) & ends[0], x == 0, (x == w - 1) & ends[1]) | 16
    inside = None
    if h % config.rows or w % config.across:
        inside = (y < h) & (x < w)
        touches = jnp.where(inside, touches, 32)
        inside = inside[by_position]
    if spec.columns % width:
        inside = both(inside, (columns < spec.columns)[by_column])
    starts = ((y * stride - 1) * spec.width + x * stride - 1) * channels

    value = triton.load(
        images_ref,
        (image, starts[by_position] + offsets[by_column]),
        (touches[by_position] & leaves) == 0,
    )
    if spec.ones:
        value = jnp.where((columns == spec.taken)[by_column], jnp.ones((), value.dtype), value)
    if inside is not None:
        inside = jnp.broadcast_to(inside, value.shape)
    index = (image, (y * w + x)[by_position], columns[by_column])
    triton.store(out_ref, index, value, inside)


def _bits(*flags: Block) -> Block:
    """Returns integers that have the flags as bits, the first flag as the lowest bit."""
    return sum(flag.astype(jnp.int32) << i for i, flag in enumerate(flags))  # type: ignore[return-value]


def forward(
    spec: Im2colSpec, config: Config, images: Float[Array, "B H W C"]
) -> Float[Array, "B h w X"]:
    """Launches the kernel."""
    h, w = spec.positions
    blocks_down, blocks_across, blocks_of_columns = config.blocks(spec)
    [out] = triton.triton_call(
        functools.partial(_kernel, spec=spec, config=config),
        name="im2col",
        programs=spec.batch * blocks_down * blocks_across * blocks_of_columns,
        out_shape=[jax.ShapeDtypeStruct((spec.batch, h * w, spec.columns), spec.dtype)],
        num_warps=config.num_warps,
        num_stages=1,
    )(images.reshape(spec.batch, -1))
    return out.reshape(spec.batch, h, w, spec.columns)
